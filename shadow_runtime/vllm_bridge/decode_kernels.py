"""The base's kernels in decode steps: our own where they are faster, vLLM's everywhere else.

Runs in: GPU worker.

A decode step is bound by reading the base's weights. vLLM's product (`torch.nn.functional.linear`) begins to read when
the kernel in front has ended and often ends with a second kernel; ours reads ahead and ends in one, and what stands
behind it, the boundary among others, begins while it still runs. For that the small kernels between two products are
ours as well: the compiler's let the product behind them start when they have all but ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from vllm import envs
from vllm.config import CompilationMode, VllmConfig
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
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


def has_own_norm(norm: Any, vllm_config: VllmConfig) -> bool:
    """Whether a norm is one that the engine's compiler makes and that we have a kernel for."""
    compilation = vllm_config.compilation_config
    return (
        type(norm) is RMSNorm
        and norm.variance_size_override is None
        and norm.pass_weight_add
        and norm.weight.dtype == vllm_config.model_config.dtype
        and rounds_like_its_compiler(vllm_config)
        and vllm_config.kernel_config.ir_op_priority.fused_add_rms_norm[:1] == ["native"]
        # a pass that looks for the norm would find it no longer
        and not (vllm_config.quant_config and compilation.pass_config.fuse_norm_quant)
        and shadow_kernels.has_fast_rms_norm(
            norm.weight.device.type, norm.weight.dtype, norm.hidden_size
        )
    )


def replace_kernels(layer: nn.Module, vllm_config: VllmConfig) -> None:
    """Let a decoder layer's dense products be ours in steps of few tokens, and what stands between two of them.

    Args:
        layer: with its weights allocated, loaded or not.
        vllm_config: the engine's.

    Quantised products and small ones stay; where no product is ours, so does everything else. An operator who names a
    linear backend (`--linear-backend torch`) has vLLM's kernels.
    """
    if not rounds_like_its_compiler(vllm_config):
        return
    if vllm_config.kernel_config.linear_backend != "auto":
        return
    methods = list(_replaceable_methods(layer))
    for method in methods:
        method._gemm_impl = _multiply
    if methods:
        _replace_norm(layer, vllm_config)
        _replace_activations(layer, vllm_config)


def _replaceable_methods(layer: nn.Module) -> Iterator[Any]:
    for module in layer.modules():
        method: Any = module.quant_method if isinstance(module, LinearBase) else None
        if (
            type(method) is UnquantizedLinearMethod
            and method._gemm_impl is default_unquantized_gemm
            and shadow_kernels.has_fast_dense_linear(module.get_parameter("weight").data)
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


def _replace_norm(layer: nn.Module, vllm_config: VllmConfig) -> None:
    """Replace the norm between attention and MLP; the layer's first belongs to the boundary (`models.CrossingNorm`)."""
    norm = getattr(layer, "post_attention_layernorm", None)
    if has_own_norm(norm, vllm_config):
        norm.__class__ = AddingNorm


class AddingNorm(RMSNorm):
    """A norm whose kernel is ours wherever it has a residual to add."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        """Return the norm of x, or (norm, sum), which are the arguments' own memory."""
        if residual is None or x.dim() != 2:
            return super().forward(x, residual)
        torch.ops.shadow.add_rms_norm_(x, residual, self.weight.data, self.variance_epsilon)
        return x, residual


def _replace_activations(layer: nn.Module, vllm_config: VllmConfig) -> None:
    module: Any
    for module in layer.modules():
        if (
            type(module) is SiluAndMul
            and not module.enabled()  # else it is vLLM's own kernel, because somebody asked for that
            # a pass that looks for the activation would find it no longer
            and not (
                vllm_config.quant_config
                and vllm_config.compilation_config.pass_config.fuse_act_quant
            )
            and shadow_kernels.has_fast_silu_and_mul(_device_type_of(layer))
        ):
            module.__class__ = GatedActivation


def _device_type_of(layer: nn.Module) -> str:
    return next(layer.parameters()).device.type


class GatedActivation(SiluAndMul):
    """An MLP's activation whose kernel is ours."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (num_tokens, columns) for x (num_tokens, 2 columns)."""
        if x.dim() != 2:
            stock: torch.Tensor = super().forward(x)
            return stock
        result: torch.Tensor = torch.ops.shadow.silu_and_mul(x)
        return result
