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
from shadow_runtime.vllm_bridge.control import AdapterHandle, inspect_adapter, stage_outcome
from shadow_runtime.vllm_bridge.engine_args import NamedAdapter, plan_start, shadow_engine_args
from shadow_runtime.vllm_bridge.request import AdapterSource, build_request

_POLL_SECONDS = 0.002


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
        self.llm.collective_rpc("shadow_stage", args=(AdapterSource.of(manifest).to_uri(),))
        while not stage_outcome(
            self.llm.collective_rpc("shadow_find_stage_error", args=(manifest.digest,))
        ):
            time.sleep(_POLL_SECONDS)
        self.llm.llm_engine.add_lora(handle.request)
        self.adapters[name] = handle
        return handle

    def unload_adapter(self, name: str) -> None:
        """Forget a name; the adapter's slot and host memory are freed when no other name has the same digest."""
        handle = self._get(name)
        del self.adapters[name]
        if all(h.manifest.digest != handle.manifest.digest for h in self.adapters.values()):
            self.llm.llm_engine.remove_lora(handle.request.lora_int_id)

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

    def _get(self, name: str) -> AdapterHandle:
        handle = self.adapters.get(name)
        if handle is None:
            raise AdapterNotFoundError(f"no adapter is loaded under the name {name!r}")
        return handle


def _named(name: str, value: str | Path | tuple[str | Path, str | Path]) -> NamedAdapter:
    if isinstance(value, tuple):
        return NamedAdapter(name, Path(value[0]), Path(value[1]))
    return NamedAdapter(name, Path(value))
