"""Which of a layer's kernels become ours, and that they compute what vLLM's do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from vllm import envs
from vllm.config import CompilationMode, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers import linear
from vllm.model_executor.layers.activation import GeluAndMul, SiluAndMul
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm
from vllm.model_executor.layers.utils import default_unquantized_gemm

from compilation_config import make_compiling_config
from shadow_kernels.testing import assert_close
from shadow_runtime.vllm_bridge.decode_kernels import (
    AddingNorm,
    GatedActivation,
    replace_kernels,
)

HIDDEN_SIZE, MLP_SIZE = 32, 48


@pytest.fixture
def has_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("has_fast_dense_linear", "has_fast_rms_norm", "has_fast_silu_and_mul"):
        monkeypatch.setattr(f"shadow_kernels.{name}", lambda *_: True)


class Product(linear.LinearBase):
    """vLLM's dense product without its parallel parts, as a device that is no CPU has it."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        nn.Module.__init__(self)
        self.quant_method: Any = linear.UnquantizedLinearMethod.__new__(
            linear.UnquantizedLinearMethod
        )
        self.quant_method._gemm_impl = default_unquantized_gemm
        weight = torch.randn(num_outputs, num_inputs) * num_inputs**-0.5
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.quant_method.apply(self, x, None)
        return result


class Layer(nn.Module):
    """The half of a decoder layer behind attention."""

    def __init__(self) -> None:
        super().__init__()
        self.post_attention_layernorm = RMSNorm(HIDDEN_SIZE, eps=0.1)
        self.post_attention_layernorm.weight.data.normal_()
        self.gate_up_proj = Product(HIDDEN_SIZE, 2 * MLP_SIZE)
        self.act_fn: nn.Module = SiluAndMul()
        self.down_proj = Product(MLP_SIZE, HIDDEN_SIZE)

    def forward(
        self, hidden: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, residual = self.post_attention_layernorm(hidden, residual)
        return self.down_proj(self.act_fn(self.gate_up_proj(hidden))), residual


@pytest.fixture
def layer() -> Iterator[Layer]:
    torch.manual_seed(1)
    config = VllmConfig()
    config.compilation_config.custom_ops = ["none"]
    with set_current_vllm_config(config):
        yield Layer()


def products_of(layer: Layer) -> list[Any]:
    return [layer.gate_up_proj.quant_method, layer.down_proj.quant_method]


def is_stock(layer: Layer) -> bool:
    return (
        all(method._gemm_impl is default_unquantized_gemm for method in products_of(layer))
        and type(layer.post_attention_layernorm) is RMSNorm
        and type(layer.act_fn) is SiluAndMul
    )


@pytest.mark.usefixtures("has_kernels")
def test_a_layer_computes_what_it_did(layer: Layer) -> None:
    hidden, residual = torch.randn(5, HIDDEN_SIZE), torch.randn(5, HIDDEN_SIZE)
    expected, expected_residual = layer(hidden.clone(), residual.clone())
    replace_kernels(layer, make_compiling_config())
    assert type(layer.post_attention_layernorm) is AddingNorm
    assert type(layer.act_fn) is GatedActivation
    calls = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            calls.append(str(func))
            return func(*args, **(kwargs or {}))

    with Spy():
        out, out_residual = layer(hidden, residual)
    assert [call for call in calls if call.startswith("shadow.")] == [
        "shadow.add_rms_norm_.default",
        "shadow.dense_linear.default",
        "shadow.silu_and_mul.default",
        "shadow.dense_linear.default",
    ]
    assert_close(out, expected.double(), "out")
    assert_close(out_residual, expected_residual.double(), "residual")


@pytest.mark.usefixtures("has_kernels")
def test_what_is_not_two_dimensional_is_vllm_s(layer: Layer) -> None:
    hidden, residual = torch.randn(2, 5, HIDDEN_SIZE), torch.randn(2, 5, HIDDEN_SIZE)
    expected, _ = layer(hidden.clone(), residual.clone())
    replace_kernels(layer, make_compiling_config())
    out, _ = layer(hidden, residual)
    assert torch.equal(out, expected)
    norm = layer.post_attention_layernorm
    assert torch.equal(norm(hidden), RMSNorm.forward(norm, hidden))


@pytest.mark.usefixtures("has_kernels")
@pytest.mark.parametrize(
    "changes",
    [
        {"compilation_config__mode": CompilationMode.NONE},
        {"compilation_config__backend": "eager"},
        {"kernel_config__linear_backend": "torch"},
    ],
)
def test_an_engine_that_does_not_compile_or_has_a_backend_named_keeps_its_kernels(
    layer: Layer, changes: dict[str, Any]
) -> None:
    replace_kernels(layer, make_compiling_config(**changes))
    assert is_stock(layer)


@pytest.mark.usefixtures("has_kernels")
def test_a_batch_invariant_engine_keeps_its_kernels(
    layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envs, "VLLM_BATCH_INVARIANT", True, raising=False)
    replace_kernels(layer, make_compiling_config())
    assert is_stock(layer)


def test_a_device_without_kernels_keeps_vllm_s(layer: Layer) -> None:
    replace_kernels(layer, make_compiling_config())
    assert is_stock(layer)


@pytest.mark.usefixtures("has_kernels")
def test_products_of_another_kind_stay_and_all_between_them(layer: Layer) -> None:
    class Quantised(linear.UnquantizedLinearMethod):
        pass

    layer.gate_up_proj.quant_method.__class__ = Quantised
    layer.down_proj.quant_method._gemm_impl = lambda *_: None
    other = layer.down_proj.quant_method._gemm_impl
    replace_kernels(layer, make_compiling_config())
    assert layer.gate_up_proj.quant_method._gemm_impl is default_unquantized_gemm
    assert layer.down_proj.quant_method._gemm_impl is other
    assert type(layer.post_attention_layernorm) is RMSNorm
    assert type(layer.act_fn) is SiluAndMul


@pytest.mark.usefixtures("has_kernels")
def test_a_product_alone_may_be_ours(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "shadow_kernels.has_fast_dense_linear", lambda weight: weight.shape[0] == HIDDEN_SIZE
    )
    replace_kernels(layer, make_compiling_config())
    gate_up, down = products_of(layer)
    assert gate_up._gemm_impl is default_unquantized_gemm
    assert down._gemm_impl is not default_unquantized_gemm


@pytest.mark.usefixtures("has_kernels")
def test_other_norms_and_activations_stay(layer: Layer) -> None:
    layer.post_attention_layernorm = GemmaRMSNorm(HIDDEN_SIZE)
    layer.act_fn = GeluAndMul()
    replace_kernels(layer, make_compiling_config())
    assert type(layer.post_attention_layernorm) is GemmaRMSNorm
    assert type(layer.act_fn) is GeluAndMul


@pytest.mark.usefixtures("has_kernels")
def test_an_activation_that_passes_look_for_or_somebody_asked_for_stays(
    layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_kernels(layer, make_compiling_config(quant_config=object()))
    assert type(layer.act_fn) is SiluAndMul
    monkeypatch.setattr(SiluAndMul, "enabled", classmethod(lambda cls: True))
    replace_kernels(layer, make_compiling_config())
    assert type(layer.act_fn) is SiluAndMul
