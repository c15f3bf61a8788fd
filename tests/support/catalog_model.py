"""What a catalog should say, worked out without a database: a dictionary and the rules.

An operation is (verb, short name, argument); all names are of one tenant.

    publish   argument: seed of the artifact          rollback  argument: version or None
    pin       argument: True or False                 delete    argument: None
"""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from sample_spec import SAMPLE_SPEC
from shadow_runtime.catalog.catalog import Catalog
from shadow_runtime.catalog.record import ArtifactRecord
from shadow_runtime.errors import AdapterNotFoundError
from shadow_runtime.types import AdapterManifest, AdapterName

Operation = tuple[str, str, Any]

BASE = f"sha256:{'b' * 64}"
OTHER_BASE = f"sha256:{'c' * 64}"
TENANT = "acme"
NOT_FOUND = "not found"


def digest_of(seed: int) -> str:
    """Return a digest that stands for the bytes of a seed."""
    return f"sha256:{seed:064x}"


def make_artifact(
    seed: int, stored_bytes: int = 100, *, path: str = "", has_backbone_config: bool = False
) -> ArtifactRecord:
    """Return an artifact as a validation would."""
    manifest = AdapterManifest(
        digest=digest_of(seed),
        format="paper",
        path=path or f"/store/{seed}",
        backbone_config=None,
        injection_rank=8,
        gate_size=10,
        scale=0.1,
        activation="silu",
        has_norm=True,
        has_update_bias=False,
        injects=(True, False),
        updates=(False, True),
        backbone=SAMPLE_SPEC,
        num_parameters=12345,
        tensor_bytes=stored_bytes - 10,
        notes=("ignored: shadow_lm_head",),
    )
    return ArtifactRecord(manifest, stored_bytes, has_backbone_config)


@dataclass
class NameModel:
    """One name: its versions as (number, seed, origin), the last number given, flags."""

    versions: list[tuple[int, int, str]] = field(default_factory=list)
    last: int = 0
    is_pinned: bool = False
    is_deleted: bool = False

    def bind(self, seed: int, origin: str) -> int:
        self.last += 1
        self.is_deleted = False
        self.versions.append((self.last, seed, origin))
        return self.last


class CatalogModel:
    """The names of one tenant."""

    def __init__(self) -> None:
        self.names: dict[str, NameModel] = {}

    def copy(self) -> CatalogModel:
        return deepcopy(self)

    def apply(self, operation: Operation) -> int | bool | str:
        """Do an operation; return what `perform` should return."""
        verb, name, argument = operation
        known = self.names.get(name)
        if verb == "publish":
            return self._publish(name, argument)
        if known is None or known.is_deleted:
            return NOT_FOUND
        if verb == "delete":
            self.names[name] = NameModel([], known.last, is_pinned=False, is_deleted=True)
            return known.last
        if verb == "pin":
            known.is_pinned = argument
            return argument
        return self._rollback(known, argument)

    def snapshot(self) -> dict[str, Any]:
        """Return what `snapshot_of` should return."""
        return {
            name: (known.last, tuple(known.versions), known.is_pinned, known.is_deleted)
            for name, known in self.names.items()
        }

    def _publish(self, name: str, seed: int) -> int:
        known = self.names.setdefault(name, NameModel())
        if known.versions and known.versions[-1][1] == seed:
            return known.last
        return known.bind(seed, "publish")

    def _rollback(self, known: NameModel, version: int | None) -> int | str:
        now = known.versions[-1][1]
        if version is None:
            seeds = [s for _, s, _ in known.versions if s != now]
        else:
            seeds = [s for v, s, _ in known.versions if v == version]
        if not seeds:
            return NOT_FOUND
        return known.last if seeds[-1] == now else known.bind(seeds[-1], "rollback")


def perform(catalog: Catalog, operation: Operation) -> int | bool | str:
    """Do an operation; return the version or flag that it answers with, or that there is nothing."""
    verb, short_name, argument = operation
    name = AdapterName(TENANT, short_name)
    try:
        if verb == "publish":
            return catalog.publish(name, make_artifact(argument), source="test").version.version
        if verb == "rollback":
            return catalog.rollback(name, argument).version.version
        if verb == "pin":
            return catalog.set_pinned(name, argument).is_pinned
        return catalog.delete(name).current
    except AdapterNotFoundError:
        return NOT_FOUND


def snapshot_of(catalog: Catalog) -> dict[str, Any]:
    """Return all that a catalog says, in comparable form."""
    return {
        record.name.name: (
            record.current,
            tuple((v.version, int(v.digest[7:], 16), v.origin) for v in record.versions),
            record.is_pinned,
            record.is_deleted,
        )
        for record in catalog.changes_since(0).adapters
    }


def random_operation(rng: random.Random) -> Operation:
    """Return one of the verbs on one of few names, so that they meet often."""
    name = rng.choice("abcd")
    verb = rng.choices(("publish", "rollback", "delete", "pin"), (6, 3, 2, 1))[0]
    if verb == "publish":
        return verb, name, rng.randrange(1, 7)
    if verb == "rollback":
        return verb, name, rng.choice((None, None, rng.randrange(1, 9)))
    return verb, name, rng.random() < 0.5 if verb == "pin" else None
