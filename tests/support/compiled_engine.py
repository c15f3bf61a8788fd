"""Answers of the demo's adapters from an engine that runs eagerly, or compiled piece by piece as on a GPU. Prints JSON.

    python compiled_engine.py eager|compiled CACHE

Compiled, layers give their first norm away and have our kernels for their products and what stands between those, as
they do where there are such; eager, they keep their own.

On a CPU vLLM compiles the whole model at once or nothing. What it does on a GPU, graphs that are cut at the attention,
compiled and kept in CACHE, works there as well; but its settings and one pass, which knows GPU operators alone, have to
be talked out of it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

PROMPTS = ("a young wizard hides your big treasure", "the old king sees a small dog")


@contextmanager
def gpu_compilation() -> Iterator[list[Any]]:
    """Let engines on the CPU compile as on a GPU; yields the modules whose attention they would replace there."""
    from vllm.compilation.passes.utility.fix_functionalization import FixFunctionalizationPass
    from vllm.config import CompilationMode
    from vllm.model_executor.layers import linear, utils
    from vllm.platforms.cpu import CpuPlatform

    stock = CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        stock(cls, vllm_config)
        compilation = vllm_config.compilation_config
        compilation.mode, compilation.backend = CompilationMode.VLLM_COMPILE, "inductor"
        compilation.compile_sizes = []
        compilation.pass_config.eliminate_noops = False

    offered: list[Any] = []
    with (
        mock.patch(
            "shadow_runtime.vllm_bridge.models.replace_attention",
            side_effect=lambda module, _: offered.append(module),
        ),
        mock.patch.object(
            CpuPlatform, "check_and_update_config", classmethod(check_and_update_config)
        ),
        mock.patch.object(FixFunctionalizationPass, "__call__", return_value=None),
        mock.patch("shadow_kernels.has_fast_rms_norm", return_value=True),
        mock.patch("shadow_kernels.has_fast_dense_linear", return_value=True),
        mock.patch("shadow_kernels.has_fast_silu_and_mul", return_value=True),
        # a CPU packs the weights for a product of its own
        mock.patch.object(
            linear, "dispatch_unquantized_gemm", return_value=utils.default_unquantized_gemm
        ),
        mock.patch.object(linear.UnquantizedLinearMethod, "process_weights_after_loading"),
    ):
        yield offered


def check_offered(modules: list[Any], vllm_config: Any) -> None:
    """Raise RuntimeError unless the engine would have replaced all attention, that of the backbone included."""
    from vllm.model_executor.layers.attention import Attention

    layers = vllm_config.compilation_config.static_forward_context
    attention = {name for name, layer in layers.items() if isinstance(layer, Attention)}
    offered = {id(layer) for module in modules for layer in module.modules()}
    missing = sorted(name for name in attention if id(layers[name]) not in offered)
    if missing or all(name.startswith("model.") for name in attention):
        raise RuntimeError(f"of {sorted(attention)} nobody was offered {missing}")


def answers(offered: list[Any] | None = None) -> list[tuple[str, str, float]]:
    """Return adapter, text and sum of logprobs of every answer; the bare base last.

    Args:
        offered: of `gpu_compilation`; None for an engine that runs eagerly.

    Raises:
        RuntimeError: the engine is not what it was asked to be.
    """
    is_eager = offered is None
    from vllm import SamplingParams

    from shadow_runtime.vllm_bridge.offline import ShadowLLM
    from shadow_server.demo import demo_adapter_paths, demo_model_path

    shadow = ShadowLLM(
        str(demo_model_path()), {name: str(path) for name, path in demo_adapter_paths().items()},
        enforce_eager=is_eager, max_model_len=256, max_resident_adapters=8, dtype="float32",
    )  # fmt: skip
    mode = shadow.llm.llm_engine.vllm_config.compilation_config.mode
    if (mode == 0) != is_eager:
        raise RuntimeError(f"the engine runs with compilation mode {mode}")
    if offered is not None:
        check_offered(offered, shadow.llm.llm_engine.vllm_config)
    rows = [
        (name, handle, prompt)
        for name, handle in [*shadow.adapters.items(), ("", None)]
        for prompt in PROMPTS
    ]
    outputs = shadow.llm.generate(
        [prompt for _, _, prompt in rows],
        SamplingParams(temperature=0, max_tokens=24, logprobs=1),
        lora_request=[handle and handle.request for _, handle, _ in rows],
        use_tqdm=False,
    )
    return [
        (name, output.outputs[0].text, output.outputs[0].cumulative_logprob)
        for (name, _, _), output in zip(rows, outputs, strict=True)
    ]


def main() -> None:
    """Print the answers."""
    is_eager = sys.argv[1] == "eager"
    os.environ["VLLM_CACHE_ROOT"] = str(Path(sys.argv[2]).resolve())
    if is_eager:
        print(json.dumps(answers()))
        return
    with gpu_compilation() as offered:
        print(json.dumps(answers(offered)))


if __name__ == "__main__":
    main()
