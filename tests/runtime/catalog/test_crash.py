"""kill -9 at random moments of publish, rollback and delete: what was acknowledged stays, nothing is half there.

A victim changes a catalog and a store, as fast as it can, and says over a pipe what it begins and what returned. The
parent kills it, opens both again, and compares them with a model of what was said: they hold every acknowledged
operation, and of the one that was not acknowledged all or nothing.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from catalog_model import BASE, CatalogModel, Operation, digest_of, snapshot_of
from catalog_victim import (
    FILE_NAME,
    WarmProcess,
    content_of,
    warm_process,
    write_sources,
)
from postgres import PostgresServer, running_postgres
from shadow_runtime.catalog import Catalog
from shadow_runtime.store import ArtifactStore

logger = logging.getLogger(__name__)

NUM_ROUNDS = 12
KILLS_PER_ROUND = 9
"""Each round begins with an empty database, whose making is interrupted too; 108 kills on each kind."""

MAX_WATCHED = 4
"""Changes that a victim may acknowledge before the random moment, which is within the next one."""


@dataclass
class Scene:
    """One round's database and store, and what they should hold."""

    url: str
    store: Path
    sources: Path
    server: PostgresServer | None
    model: CatalogModel = field(default_factory=CatalogModel)
    pending: Operation | None = None
    counts: Counter[str] = field(default_factory=Counter)
    opening_seconds: float = 0.1
    change_seconds: float = 0.0

    def kill_one(self, warm: WarmProcess, rng: random.Random, *, while_opening: bool) -> None:
        """Start a victim, kill it at a random moment, and follow what it said until then."""
        pid = warm.start(rng.getrandbits(32), self.url, self.store, self.sources)
        started = time.monotonic()
        if not while_opening:
            assert warm.read() == ["open"]
            self.opening_seconds = time.monotonic() - started
            self._watch(warm, rng.randint(1, MAX_WATCHED))
        time.sleep(rng.uniform(0, self.opening_seconds if while_opening else self.change_seconds))
        os.kill(pid, signal.SIGKILL)
        self.counts["kills"] += 1
        while (line := warm.read())[0] != "dead":
            self._follow(line)
        assert line == ["dead", signal.SIGKILL]

    def check(self) -> None:
        """Open what the victim left and compare it with the model."""
        if self.server is not None:
            wait_for_backends(self.server, self.url)
        catalog = Catalog.open(self.url, BASE)
        try:
            found = snapshot_of(catalog)
            self._settle(found)
            self._check_numbers(found)
            self._check_bytes(catalog)
        finally:
            catalog.close()

    def _watch(self, warm: WarmProcess, num_changes: int) -> None:
        """Let the victim go on for some changes, and note how long one takes on this machine."""
        started = time.monotonic()
        enough = self.counts["acknowledged"] + num_changes
        while self.counts["acknowledged"] < enough:
            self._follow(warm.read())
        self.change_seconds = (time.monotonic() - started) / num_changes

    def _follow(self, line: list[Any]) -> None:
        match line:
            case ["try", [verb, name, argument]]:
                self.pending = (verb, name, argument)
            case ["done", answer]:
                assert self.model.apply(self.pending) == answer, self.pending
                self.counts["acknowledged"] += 1
                self.pending = None

    def _settle(self, found: dict) -> None:
        if self.pending is None:
            assert found == self.model.snapshot()
            return
        self.counts["interrupted"] += 1
        with_pending = self.model.copy()
        with_pending.apply(self.pending)
        assert found in (self.model.snapshot(), with_pending.snapshot()), self.pending
        if found != self.model.snapshot():
            self.counts["visible"] += 1
            self.model = with_pending
        self.pending = None

    def _check_numbers(self, found: dict) -> None:
        for current, versions, _, is_deleted in found.values():
            numbers = [number for number, _, _ in versions]
            first = current - len(numbers) + 1
            assert numbers == list(range(first, current + 1))
            assert is_deleted == (not numbers)

    def _check_bytes(self, catalog: Catalog) -> None:
        seeds = {s for name in self.model.names.values() for _, s, _ in name.versions}
        assert catalog.referenced_digests() == {digest_of(seed) for seed in seeds}
        store = ArtifactStore(self.store, file_names=(FILE_NAME,))
        for seed in seeds:
            stored = store.find(digest_of(seed))
            assert stored is not None
            assert [p.name for p in stored.path.iterdir()] == [FILE_NAME]
            assert (stored.path / FILE_NAME).read_bytes() == content_of(seed)


def wait_for_backends(server: PostgresServer, url: str) -> None:
    """Wait until the server has noticed that the victim is gone: its last statement may still be at work."""
    deadline = time.monotonic() + 30
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        f" WHERE datname = '{make_url(url).database}' AND backend_type = 'client backend'"
    )
    while server.execute(query)[0][0]:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmProcess]:
    with warm_process() as process:
        yield process


@contextmanager
def sqlite_databases(tmp_path: Path) -> Iterator[Iterator[tuple[str, None]]]:
    yield ((f"sqlite:///{tmp_path}/registry{n}.db", None) for n in range(NUM_ROUNDS))


@contextmanager
def postgres_databases(tmp_path: Path) -> Iterator[Iterator[tuple[str, PostgresServer]]]:
    with running_postgres() as server:
        yield ((new_database(server), server) for _ in range(NUM_ROUNDS))


def new_database(server: PostgresServer) -> str:
    name = f"crash_{time.monotonic_ns()}"
    server.execute(f"CREATE DATABASE {name}")
    return server.url(name)


@pytest.mark.slow
@pytest.mark.parametrize("databases", [sqlite_databases, postgres_databases])
def test_nothing_acknowledged_is_lost_and_nothing_is_half_there(warm, databases, tmp_path):
    rng = random.Random(4)
    sources = tmp_path / "sources"
    write_sources(sources, range(1, 7))
    totals: Counter[str] = Counter()
    with databases(tmp_path) as urls:
        for number, (url, server) in enumerate(urls):
            scene = Scene(url, tmp_path / f"store{number}", sources, server)
            for kill in range(KILLS_PER_ROUND):
                scene.kill_one(warm, rng, while_opening=kill == 0 or rng.random() < 0.1)
                scene.check()
            totals += scene.counts
    logger.info("%s: %s", databases.__name__, dict(totals))

    assert totals["kills"] >= 100
    # The kills meet operations, and the operations before them were many: the test is about something.
    assert totals["interrupted"] >= totals["kills"] // 2
    assert totals["acknowledged"] >= totals["kills"]
