"""Loading, placing and unloading adapters in a running engine.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.lora.request import LoRARequest

from shadow_runtime import errors
from shadow_runtime.artifact import load_adapter
from shadow_runtime.registry.entry import Level
from shadow_runtime.slots.layout import ShardPlan, choose_class, slot_bytes
from shadow_runtime.types import AdapterManifest
from shadow_runtime.vllm_bridge.request import AdapterSource

if TYPE_CHECKING:
    from vllm.engine.protocol import EngineClient

    from shadow_runtime.vllm_bridge.engine_args import StartPlan

_FIRST_POLL_SECONDS = 0.002
_LAST_POLL_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class AdapterHandle:
    """An adapter that `ShadowLLM` has loaded.

    Attributes:
        name: its name in requests.
        manifest: what it is.
        request: the vLLM request that selects it. Its `lora_name` is the digest: vLLM treats requests of equal name
            as equal, and during a hot swap two versions are in one batch.
    """

    name: str
    manifest: AdapterManifest
    request: LoRARequest

    @property
    def lora_request(self) -> LoRARequest:
        """The same as `request`, under vLLM's word."""
        return self.request


def inspect_adapter(
    plan: StartPlan, path: str | Path, backbone_config: str | Path | None = None
) -> AdapterManifest:
    """Read and validate an adapter against a server's base and slot classes without loading it.

    Blocking: reads and hashes every tensor.

    Raises:
        AdapterError, AdapterNotFoundError: see `shadow_runtime.errors`.
    """
    config = None if backbone_config is None else Path(backbone_config)
    manifest = load_adapter(
        Path(path), plan.base, plan.config.limits, backbone_config=config
    ).manifest
    choose_class(plan.config, manifest)
    return manifest


def merge_progress(answers: list[Any]) -> bool | None:
    """Return what all workers have reached together: True done, False refused without error, None under way.

    Raises:
        ShadowError: the first error that one of them reports.
    """
    for answer in answers:
        # A worker's tuple is a list once it has crossed vLLM's wire; an engine in this process hands it on as it is.
        if isinstance(answer, (list, tuple)):
            code, message = answer
            raise _ERRORS.get(code, errors.ShadowError)(message)
    return None if None in answers else all(answers)


class PollDelay:
    """Delays that grow from 2 ms to 5 ms: every question takes a moment between two steps of the engine.

    They grow by a third, so what takes long is noticed at most a third later than it could have been.
    """

    def __init__(self) -> None:
        self._seconds = _FIRST_POLL_SECONDS

    def next(self) -> float:
        """Return how long to wait before the next question, in seconds."""
        seconds = self._seconds
        self._seconds = min(seconds * 4 / 3, _LAST_POLL_SECONDS)
        return seconds


_ERRORS = {
    cls.code: cls
    for cls in vars(errors).values()
    if isinstance(cls, type)
    and issubclass(cls, errors.ShadowError)
    and cls is not errors.ShadowError
}


class EngineControl:
    """Adapter operations on an asynchronous engine client, keyed by digest: the registry's `AdapterLoader`.

    Under data parallelism every replica holds every adapter, so a request may go to any of them.

    Calls of one digest must not be concurrent; calls of different digests may be.
    Failure behaviour: an adapter that does not load leaves the engine as it was.
    """

    def __init__(self, engine: EngineClient, plan: StartPlan) -> None:
        self._engine = engine
        self.plan = plan

    async def load(self, manifest: AdapterManifest) -> None:
        """Hold the adapter at `manifest.path` in every worker; free when it is held already.

        Every worker reads and hashes the files itself, off its step thread, so what is held is what was validated.

        Raises:
            AdapterError, AdapterNotFoundError, DigestMismatchError, CapacityError: see `shadow_runtime.errors`.
        """
        uri = AdapterSource.of(manifest).to_uri()
        await self._finish("shadow_load", uri, undo=partial(self.unload, manifest.digest))

    async def prefetch(self, digest: str) -> bool:
        """Copy a held adapter into a free or idle slot of every worker, off the step path.

        Returns: False when a worker has no such slot, or does not hold the adapter.
        """
        return await self._finish("shadow_prefetch", digest)

    async def release_slot(self, digest: str) -> None:
        """Free the slot of a digest that no running request uses; it stays in host memory, a pinned one in its slot."""
        await self._call("shadow_release_slot", digest)

    async def unload(self, digest: str) -> None:
        """Free slot and host memory of a digest; no request may use it any more. Unknown digests are ignored."""
        await self._call("shadow_unload", digest)

    async def pin(self, digest: str) -> None:
        """Keep a held adapter in its slot.

        Raises:
            CapacityError: its slot class has `max_pinned_adapters` pinned adapters.
            AdapterNotFoundError: a worker does not hold it.
        """
        await self._finish("shadow_pin", digest, undo=partial(self.unpin, digest))

    async def unpin(self, digest: str) -> None:
        """Undo `pin`; unknown digests are ignored."""
        await self._call("shadow_unpin", digest)

    async def levels(self) -> Mapping[str, Level]:
        """Return `gpu` for digests that are in a slot of every worker, `host` for what every worker holds."""
        workers = await self.worker_status()
        held = set.intersection(*(set(worker["held"]) for worker in workers))
        resident = set.intersection(*(set(worker["resident"]) for worker in workers))
        return {digest: "gpu" if digest in resident else "host" for digest in held}

    def host_bytes(self, manifest: AdapterManifest) -> int:
        """Return the bytes of the padded images of all workers together, as if all of them were on this host.

        Raises:
            AdapterLimitError: it fits no slot class.
        """
        base, config = self.plan.base, self.plan.config
        ranks = self._engine.vllm_config.parallel_config.tensor_parallel_size
        # Pipeline stages split the layers; only two vectors of the base's width are there once a stage.
        shard = ShardPlan((0, base.num_layers), has_backbone=True, size=ranks)
        element_bytes = self._engine.model_config.dtype.itemsize
        class_index = choose_class(config, manifest)
        num_shards = self.num_engines * ranks
        return num_shards * slot_bytes(config, class_index, base.hidden_size, shard, element_bytes)

    @property
    def num_engines(self) -> int:
        """How many engine cores this process sends requests to: the replicas under data parallelism, else one."""
        return len(self._core.core_engines)

    async def worker_status(self) -> list[dict[str, Any]]:
        """Return one state per worker of every engine core.

        Keys: active, num_slots, num_free_slots, resident (digest to slot), pinned and held (digests), host_bytes, rank,
        runner.
        """
        return await self._call("shadow_status")

    async def _finish(
        self,
        method: str,
        argument: str,
        undo: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> bool:
        # Workers answer between steps and cannot call back, so they are asked until none is under way.
        delay = PollDelay()
        answers = await self._call(method, argument)
        try:
            while (outcome := merge_progress(answers)) is None:
                await asyncio.sleep(delay.next())
                answers = await self._call(method, argument)
        except BaseException:
            # Also when the caller goes away. A worker may have finished, or be about to, where another failed. What was
            # done when the first question was asked has been left by then, so nothing that is in use is undone.
            if undo is not None:
                await asyncio.shield(undo())
            raise
        return outcome

    async def _call(self, method: str, *arguments: str) -> list[Any]:
        # The client's own `collective_rpc` asks all cores, too, and drops what all but the first say.
        answers = await self._core.call_utility_all_async(
            "collective_rpc", method, None, arguments, None
        )
        return [worker for engine in answers for worker in engine]

    @property
    def _core(self) -> Any:
        return self._engine.engine_core  # type: ignore[attr-defined]
