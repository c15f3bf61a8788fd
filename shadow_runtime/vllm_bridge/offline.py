"""A synchronous engine with adapters, for scripts, benchmarks and tests.

Runs in: API process.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm import LLM, RequestOutput, SamplingParams

from shadow_runtime.config import ShadowConfig
from shadow_runtime.errors import AdapterExistsError, AdapterNotFoundError
from shadow_runtime.slots.derive import SlotOptions
from shadow_runtime.vllm_bridge.control import (
    AdapterHandle,
    PollDelay,
    inspect_adapter,
    merge_progress,
)
from shadow_runtime.vllm_bridge.engine_args import NamedAdapter, plan_start, shadow_engine_args
from shadow_runtime.vllm_bridge.request import AdapterSource, build_request


class ShadowLLM:
    """vLLM's `LLM` with ShadowPEFT adapters.

    Example:
        llm = ShadowLLM("path/to/base", adapters={"math": "path/to/math"})
        llm.generate(["2 + 2 ="] * 2, SamplingParams(max_tokens=8), adapters=["math", None])
    """

    def __init__(
        self,
        model: str,
        adapters: Mapping[str, str | Path | tuple[str | Path, str | Path]] | None = None,
        *,
        config: ShadowConfig | None = None,
        options: SlotOptions | None = None,
        max_resident_adapters: int | None = None,
        **engine_args: Any,
    ) -> None:
        """Start the engine and load the adapters.

        Args:
            model: base model, as for `vllm.LLM`.
            adapters: name to checkpoint directory, or to (directory, explicit backbone's config).
            config: complete slot settings; derived from the adapters and `options` when None.
            options: wishes for the derivation.
            max_resident_adapters: shorthand for that field of `options`.
            engine_args: any further argument of `vllm.LLM`.

        Raises:
            ShadowError: see `plan_start`.
        """
        named = [_named(name, value) for name, value in (adapters or {}).items()]
        if options is None:
            options = SlotOptions(
                max_resident_adapters=max_resident_adapters or SlotOptions().max_resident_adapters
            )
        self.plan = plan_start(model, named, options, config=config)
        self.llm = LLM(
            model=model, **{**engine_args, **shadow_engine_args(self.plan.config, engine_args)}
        )
        self.adapters: dict[str, AdapterHandle] = {}
        for adapter in named:
            self.load_adapter(adapter.name, adapter.path, adapter.backbone_config)

    def load_adapter(
        self, name: str, path: str | Path, backbone_config: str | Path | None = None
    ) -> AdapterHandle:
        """Load an adapter at run time; raises AdapterExistsError for a taken name, else as `EngineControl.load`."""
        if name in self.adapters:
            raise AdapterExistsError(f"the name {name!r} is taken; unload it first")
        manifest = inspect_adapter(self.plan, path, backbone_config)
        handle = AdapterHandle(name, manifest, build_request(name, manifest))
        try:
            self._finish("shadow_load", AdapterSource.of(manifest).to_uri())
        except BaseException:
            self._unload_unused(manifest.digest)
            raise
        self.adapters[name] = handle
        return handle

    def unload_adapter(self, name: str) -> None:
        """Forget a name; the adapter's slot and host memory are freed when no other name has the same digest."""
        handle = self._get(name)
        del self.adapters[name]
        self._unload_unused(handle.manifest.digest)

    def prefetch(self, name: str) -> bool:
        """Copy a loaded adapter into a free or idle slot; returns False when there is none."""
        return self._finish("shadow_prefetch", self._get(name).manifest.digest)

    def release_slot(self, name: str) -> None:
        """Free a loaded adapter's slot, unless it is pinned; it stays in host memory."""
        self.llm.collective_rpc("shadow_release_slot", args=(self._get(name).manifest.digest,))

    def pin(self, name: str) -> None:
        """Keep a loaded adapter in a slot; raises CapacityError when `max_pinned_adapters` others are pinned."""
        self._finish("shadow_pin", self._get(name).manifest.digest)

    def unpin(self, name: str) -> None:
        """Undo `pin`."""
        self.llm.collective_rpc("shadow_unpin", args=(self._get(name).manifest.digest,))

    def generate(
        self,
        prompts: Sequence[Any],
        sampling_params: SamplingParams | Sequence[SamplingParams],
        adapters: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[RequestOutput]:
        """Answer prompts, each with its own adapter (None for the bare base); order is kept.

        Raises:
            AdapterNotFoundError: a name is not loaded; nothing was submitted.
        """
        names = [None] * len(prompts) if adapters is None else list(adapters)
        requests = [None if name is None else self._get(name).request for name in names]
        return self.llm.generate(
            list(prompts), sampling_params, lora_request=requests, use_tqdm=False, **kwargs
        )

    def worker_status(self) -> list[dict[str, Any]]:
        """Return one state per worker, see `EngineControl.worker_status`."""
        return self.llm.collective_rpc("shadow_status")

    def shutdown(self) -> None:
        """Stop the engine and its processes."""
        self.llm.llm_engine.engine_core.shutdown()

    def _unload_unused(self, digest: str) -> None:
        if all(handle.manifest.digest != digest for handle in self.adapters.values()):
            self.llm.collective_rpc("shadow_unload", args=(digest,))

    def _finish(self, method: str, argument: str) -> bool:
        delay = PollDelay()
        while (
            outcome := merge_progress(self.llm.collective_rpc(method, args=(argument,)))
        ) is None:
            time.sleep(delay.next())
        return outcome

    def _get(self, name: str) -> AdapterHandle:
        handle = self.adapters.get(name)
        if handle is None:
            raise AdapterNotFoundError(f"no adapter is loaded under the name {name!r}")
        return handle


def _named(name: str, value: str | Path | tuple[str | Path, str | Path]) -> NamedAdapter:
    if isinstance(value, tuple):
        return NamedAdapter(name, Path(value[0]), Path(value[1]))
    return NamedAdapter(name, Path(value))
