"""What adapters are to the fake engine: a validator that reads a word, and a loader with slots of nothing.

Runs in: API process. Imports neither torch nor vllm.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path

from shadow_server.engine import (
    AdapterManifest,
    BackboneSpec,
    CanonicalTarget,
    Level,
    TensorReport,
    ValidationReport,
    runtime_errors,
)

ADAPTER_FILE = "adapter.txt"
BASE_FINGERPRINT = f"sha256:{hashlib.sha256(b'fake-base').hexdigest()}"
_SLOT_BYTES = 4096


class FakeValidator:
    """Takes any `adapter.txt` without the word `broken`; its bytes are the adapter's identity."""

    async def validate(
        self,
        path: str,
        backbone_config: str | None = None,
        canonical: CanonicalTarget | None = None,
    ) -> AdapterManifest:
        """See `Validator`."""
        file = Path(path) / ADAPTER_FILE
        if not file.is_file():
            raise runtime_errors.AdapterFileError(f"the adapter has no file '{ADAPTER_FILE}'")
        data = file.read_bytes()
        if b"broken" in data:
            raise runtime_errors.AdapterTensorError(f"{file} holds NaN at 0x7f00deadbeef")
        return _manifest(data, path, backbone_config)

    async def report(self, path: str, backbone_config: str | None = None) -> ValidationReport:
        """See `Validator`."""
        started_at = time.monotonic()
        manifest, code, message = None, None, None
        try:
            manifest = await self.validate(path, backbone_config)
        except runtime_errors.AdapterError as error:
            code, message = error.code, str(error)
        return ValidationReport(
            manifest=manifest,
            error_code=code,
            error_message=message,
            tensors=(TensorReport("text", "U8", (1,), 1, manifest is not None),),
            slot_class="fake" if manifest else None,
            slot_bytes=_SLOT_BYTES if manifest else None,
            base_fingerprint=BASE_FINGERPRINT,
            seconds=time.monotonic() - started_at,
        )


class FakeLoader:
    """Holds adapters in name only, and some of them in slots. Tests steer it.

    Attributes:
        held: digests in host memory.
        slots: digests in a slot, the least recently used first.
        pins: digests that keep their slot.
        gate: loads hang until it is set; None lets them through.
        failure: what every load raises; None for nothing.
        num_loads: loads that were asked for.
        num_slots, max_pins: slots, and how many pins may take.
    """

    def __init__(self, num_slots: int = 4, max_pins: int = 2) -> None:
        self.held: set[str] = set()
        self.slots: list[str] = []
        self.pins: set[str] = set()
        self.gate: asyncio.Event | None = None
        self.failure: Exception | None = None
        self.num_loads = 0
        self.num_slots = num_slots
        self.max_pins = max_pins

    async def load(self, manifest: AdapterManifest) -> None:
        """See `AdapterLoader`."""
        self.num_loads += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.held.add(manifest.digest)

    async def prefetch(self, digest: str) -> bool:
        """See `AdapterLoader`."""
        if digest in self.slots or len(self.slots) < self.num_slots:
            self.use(digest)
        return digest in self.slots

    async def release_slot(self, digest: str) -> None:
        """See `AdapterLoader`."""
        if digest in self.slots:
            self.slots.remove(digest)

    async def unload(self, digest: str) -> None:
        """See `AdapterLoader`."""
        await self.release_slot(digest)
        self.held.discard(digest)
        self.pins.discard(digest)

    async def pin(self, digest: str) -> None:
        """See `AdapterLoader`."""
        if digest not in self.pins and len(self.pins) >= self.max_pins:
            raise runtime_errors.CapacityError(f"all {self.max_pins} pins are used")
        self.pins.add(digest)
        self.use(digest)

    async def unpin(self, digest: str) -> None:
        """See `AdapterLoader`."""
        self.pins.discard(digest)

    async def levels(self) -> Mapping[str, Level]:
        """See `AdapterLoader`."""
        return {digest: "gpu" if digest in self.slots else "host" for digest in self.held}

    def host_bytes(self, manifest: AdapterManifest) -> int:
        """See `AdapterLoader`."""
        return manifest.tensor_bytes

    def use(self, digest: str) -> None:
        """Move a held digest into a slot as a running request does, in the place of the least used."""
        if digest not in self.held:
            raise RuntimeError(f"{digest} answers a request and is not held")
        if digest in self.slots:
            self.slots.remove(digest)
        elif len(self.slots) >= self.num_slots:
            self.slots.remove(next(d for d in self.slots if d not in self.pins))
        self.slots.append(digest)


def _manifest(data: bytes, path: str, backbone_config: str | None) -> AdapterManifest:
    zeros = {field.name: 0 for field in dataclasses.fields(BackboneSpec)}
    spec = zeros | {"family": "fake", "norm": "rms", "mlp": "glu", "activation": "silu"}
    return AdapterManifest(
        digest=f"sha256:{hashlib.sha256(data).hexdigest()}",
        format="paper",
        path=path,
        backbone_config=backbone_config,
        injection_rank=16,
        gate_size=10,
        scale=0.1,
        activation="silu",
        has_norm=True,
        has_update_bias=False,
        injects=(False, True),
        updates=(False, False),
        backbone=BackboneSpec(**(spec | {"rope": None, "windows": ()})),  # type: ignore[arg-type]
        num_parameters=len(data),
        tensor_bytes=len(data),
    )
