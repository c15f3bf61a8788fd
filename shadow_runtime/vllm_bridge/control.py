"""Loading and unloading adapters in a running engine.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.lora.request import LoRARequest

from shadow_runtime import errors
from shadow_runtime.artifact import load_adapter
from shadow_runtime.slots.layout import choose_class
from shadow_runtime.types import AdapterManifest
from shadow_runtime.vllm_bridge.request import AdapterSource, build_request

if TYPE_CHECKING:
    from vllm.engine.protocol import EngineClient

    from shadow_runtime.vllm_bridge.engine_args import StartPlan

_POLL_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class AdapterHandle:
    """A loaded adapter.

    Attributes:
        name: its name in requests.
        manifest: what it is.
        request: the vLLM request that selects it. Its `lora_name` carries the digest, `name@<8 digits>`: vLLM treats
            requests of equal name as equal, and during a hot swap two versions are in one batch.
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


def stage_outcome(answers: list[Any]) -> bool:
    """Return whether every worker has staged an adapter; raises the first error that one of them reports."""
    for answer in answers:
        # A worker's tuple is a list once it has crossed vLLM's wire; an engine in this process hands it on as it is.
        if isinstance(answer, (list, tuple)):
            code, message = answer
            raise _ERRORS.get(code, errors.ShadowError)(message)
    return all(answers)


_ERRORS = {
    cls.code: cls
    for cls in vars(errors).values()
    if isinstance(cls, type)
    and issubclass(cls, errors.ShadowError)
    and cls is not errors.ShadowError
}


class EngineControl:
    """Adapter operations on an asynchronous engine client.

    Failure behaviour: an adapter that does not load leaves the engine as it was.
    """

    def __init__(self, engine: EngineClient, plan: StartPlan) -> None:
        self._engine = engine
        self.plan = plan

    async def load(self, name: str, path: str, backbone_config: str | None = None) -> AdapterHandle:
        """Validate an adapter and hold it in every worker; reading never blocks the engine's steps.

        Raises:
            AdapterError, AdapterNotFoundError, DigestMismatchError, CapacityError: see `shadow_runtime.errors`.
        """
        manifest = await asyncio.to_thread(inspect_adapter, self.plan, path, backbone_config)
        handle = AdapterHandle(name, manifest, build_request(name, manifest))
        await self._engine.collective_rpc(
            "shadow_stage", args=(AdapterSource.of(manifest).to_uri(),)
        )
        await self._wait_until_staged(manifest.digest)
        await self._add(handle)
        return handle

    async def _wait_until_staged(self, digest: str) -> None:
        # Workers answer RPCs between steps and cannot call back, so their loader threads are asked.
        while not stage_outcome(  # noqa: ASYNC110
            await self._engine.collective_rpc("shadow_find_stage_error", args=(digest,))
        ):
            await asyncio.sleep(_POLL_SECONDS)

    async def _add(self, handle: AdapterHandle) -> None:
        held = await self.worker_status()
        if all(handle.manifest.digest in status["held"] for status in held):
            return
        if any(len(status["held"]) >= self.plan.config.max_host_adapters for status in held):
            raise errors.CapacityError(
                f"all {self.plan.config.max_host_adapters} places for adapters in host memory are taken"
            )
        await self._engine.add_lora(handle.request)

    async def unload(self, handle: AdapterHandle) -> None:
        """Free an adapter's slot and host memory in every worker; no request may use it any more."""
        await self._engine.remove_lora(handle.request.lora_int_id)

    async def worker_status(self) -> list[dict[str, Any]]:
        """Return one state per worker.

        Keys: active, num_slots, num_free_slots, resident (digest to slot), held (digests), host_bytes, rank, runner.
        """
        return await self._engine.collective_rpc("shadow_status")
