"""The base's dense products in decode steps: our own where they are faster, vLLM's everywhere else.

Runs in: GPU worker.

A decode step is bound by reading the base's weights. vLLM's product (`torch.nn.functional.linear`) begins to read when
the kernel in front has ended and often ends with a second kernel; ours reads ahead and ends in one. What stands behind
it, the boundary among others, starts while it still runs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from vllm import envs
from vllm.config import CompilationMode, VllmConfig
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.utils import default_unquantized_gemm

import shadow_kernels


def rounds_like_its_compiler(vllm_config: VllmConfig) -> bool:
    """Whether an engine's kernels are the compiler's, so that ours may round elsewhere than vLLM's own do.

    In engines that do not compile, and in batch-invariant ones, rows without an adapter have the bits of stock vLLM.
    """
    compilation = vllm_config.compilation_config
    return (
        compilation.mode == CompilationMode.VLLM_COMPILE
        and compilation.backend == "inductor"
        and not envs.VLLM_BATCH_INVARIANT
    )


def replace_products(layer: nn.Module, vllm_config: VllmConfig) -> int:
    """Let a decoder layer's dense products be ours in steps of few tokens; return how many of them are now.

    Args:
        layer: with its weights allocated, loaded or not.
        vllm_config: the engine's.

    Quantised products and small ones stay.
    """
    if not rounds_like_its_compiler(vllm_config):
        return 0
    num_replaced = 0
    for method in _replaceable_methods(layer):
        method._gemm_impl = _multiply
        num_replaced += 1
    return num_replaced


def _replaceable_methods(layer: nn.Module) -> Iterator[UnquantizedLinearMethod]:
    for module in layer.modules():
        method = module.quant_method if isinstance(module, LinearBase) else None
        if (
            type(method) is UnquantizedLinearMethod
            and method._gemm_impl is default_unquantized_gemm
            and shadow_kernels.has_fast_dense_linear(module.weight.data)
        ):
            yield method


def _multiply(
    layer: nn.Module, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Return x @ weight.T + bias, in the place of vLLM's `default_unquantized_gemm`."""
    if x.dim() != 2:
        return default_unquantized_gemm(layer, x, weight, bias)
    result: torch.Tensor = torch.ops.shadow.dense_linear(x, weight, bias)
    return result
