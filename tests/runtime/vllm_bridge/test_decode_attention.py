"""Whose attention a decode step has, and that ours gets what FlashAttention would."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from vllm import envs
from vllm.config import CompilationMode
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.flash_attn import FlashAttentionImpl, FlashAttentionMetadata
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from compilation_config import make_compiling_config
from shadow_kernels.ops.decode_attention.reference import decode_attention_reference
from shadow_kernels.testing import assert_close
from shadow_kernels.testing_attention import DecodeCase, Sizes, make_decode_case
from shadow_runtime.vllm_bridge.decode_attention import DecodeAttentionImpl, replace_attention

SIZES = Sizes(num_heads=4, num_kv_heads=2, head_size=64)


@pytest.fixture
def has_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose kernel is the oracle."""

    def attend(*arguments: Any) -> None:
        *inputs, out, arrivals = arguments
        assert not arrivals.any()
        out.copy_(decode_attention_reference(*inputs))

    monkeypatch.setattr("shadow_kernels.has_fast_decode_attention", lambda *_: True)
    monkeypatch.setattr("shadow_kernels.takes_decode_attention", lambda *_: True)
    monkeypatch.setattr("shadow_kernels.new_arrivals", lambda device: torch.zeros(4, device=device))
    monkeypatch.setattr("shadow_kernels.decode_attention", attend)


def make_module(**changes: Any) -> Any:
    """Return a module with one attention layer whose implementation is FlashAttention, not quite built."""
    layer: Any = Attention.__new__(Attention)
    nn.Module.__init__(layer)
    layer.dtype = torch.bfloat16
    layer.impl = object.__new__(FlashAttentionImpl)
    settings: dict[str, Any] = {
        "attn_type": AttentionType.DECODER, "sliding_window": (-1, -1), "logits_soft_cap": 0, "alibi_slopes": None,
        "sinks": None, "kv_cache_dtype": "auto", "total_cp_world_size": 1, "num_heads": SIZES.num_heads,
        "num_kv_heads": SIZES.num_kv_heads, "head_size": SIZES.head_size, "scale": 0.3,
    }  # fmt: skip
    for name, value in (settings | changes).items():
        setattr(layer.impl, name, value)
    return nn.ModuleDict({"attn": layer})


def impl_of(module: Any) -> Any:
    return module["attn"].impl


def make_metadata(case: DecodeCase, **changes: Any) -> FlashAttentionMetadata:
    values = {
        "num_actual_tokens": len(case.query), "max_query_len": 1, "query_start_loc": None, "max_seq_len": 1 << 20,
        "seq_lens": case.seq_lens, "block_table": case.block_table, "slot_mapping": None,
    }  # fmt: skip
    return FlashAttentionMetadata(**(values | changes))


def cache_of(case: DecodeCase) -> torch.Tensor:
    """Return keys and values as vLLM hands them over: (pages, kv_heads, page_size, 2 D)."""
    return torch.cat([case.key_cache, case.value_cache], dim=-1).transpose(1, 2)


@pytest.mark.usefixtures("has_kernel")
def test_a_decode_step_is_ours() -> None:
    module = make_module()
    replace_attention(module, make_compiling_config())
    case = make_decode_case([40, 3, 17], SIZES)
    query = torch.cat([case.query, torch.full_like(case.query[:2], torch.nan)])
    out = torch.full_like(query, torch.nan)
    result = impl_of(module).forward(
        module["attn"], query, None, None, cache_of(case), make_metadata(case), out
    )
    assert result is out
    assert type(impl_of(module)) is DecodeAttentionImpl
    assert "attn.decode_arrivals" in dict(
        module.named_buffers()
    )  # vLLM keeps those through a sleep
    assert not module.state_dict()
    keys = (case.key_cache, case.value_cache, case.block_table, case.seq_lens)
    expected = decode_attention_reference(case.query, *keys, 0.3)
    assert_close(out[:3].flatten(1), expected.flatten(1), "out")
    assert out[3:].isnan().all()  # beyond the step's tokens


@pytest.fixture
def stock_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        FlashAttentionImpl,
        "forward",
        lambda self, *args, **kwargs: calls.append((args, kwargs)) or "stock",  # type: ignore[func-returns-value]
    )
    return calls


@pytest.mark.usefixtures("has_kernel")
@pytest.mark.parametrize(
    "changes",
    [
        {"max_query_len": 2},
        {"causal": False},
        {"causal": torch.ones(3, dtype=torch.int32)},
        {"mm_prefix_query_range_tensor": torch.zeros(3, 2)},
        {"rswa_prefix_lens": torch.zeros(3)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_steps_are_flash_attention_s(
    changes: dict[str, Any], stock_calls: list[tuple[Any, ...]]
) -> None:
    module = make_module()
    replace_attention(module, make_compiling_config())
    case = make_decode_case([40, 3, 17], SIZES)
    metadata = make_metadata(case, **changes)
    arguments = (module["attn"], case.query, 1, 2, cache_of(case), metadata, case.query)
    assert impl_of(module).forward(*arguments, output_scale=None) == "stock"
    ((args, kwargs),) = stock_calls
    assert all(given is expected for given, expected in zip(args, arguments, strict=True))
    assert kwargs == {"output_scale": None}


@pytest.mark.usefixtures("has_kernel")
def test_profiling_without_metadata_is_flash_attention_s(
    stock_calls: list[tuple[Any, ...]],
) -> None:
    module = make_module()
    replace_attention(module, make_compiling_config())
    assert impl_of(module).forward(None, None, None, None, None, None, None) == "stock"
    assert len(stock_calls) == 1


@pytest.mark.usefixtures("has_kernel")
def test_a_layout_without_kernel_is_flash_attention_s(
    stock_calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_module()
    replace_attention(module, make_compiling_config())
    monkeypatch.setattr("shadow_kernels.takes_decode_attention", lambda *_: False)
    case = make_decode_case([40, 3, 17], SIZES)
    out = torch.empty_like(case.query)
    metadata = make_metadata(case)
    forward = impl_of(module).forward
    assert forward(module["attn"], case.query, None, None, cache_of(case), metadata, out) == "stock"
    assert len(stock_calls) == 1


class OtherImpl(FlashAttentionImpl):
    pass


@pytest.mark.usefixtures("has_kernel")
@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": (127, 0)},
        {"logits_soft_cap": 30.0},
        {"alibi_slopes": torch.ones(4)},
        {"sinks": torch.ones(4)},
        {"kv_cache_dtype": "fp8"},
        {"attn_type": AttentionType.ENCODER_ONLY},
        {"total_cp_world_size": 2},
        {"__class__": OtherImpl},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_attention_stays(changes: dict[str, Any]) -> None:
    module = make_module(**changes)
    before = type(impl_of(module))
    replace_attention(module, make_compiling_config())
    assert type(impl_of(module)) is before


@pytest.mark.usefixtures("has_kernel")
@pytest.mark.parametrize(
    "changes",
    [
        {"compilation_config__mode": CompilationMode.NONE},
        {"attention_config__backend": AttentionBackendEnum.FLASH_ATTN},
        {"attention_config__backend_per_kind": {"full": AttentionBackendEnum.FLASH_ATTN}},
    ],
)
def test_an_engine_that_does_not_compile_or_has_a_backend_named_keeps_its_attention(
    changes: dict[str, Any],
) -> None:
    module = make_module()
    replace_attention(module, make_compiling_config(**changes))
    assert type(impl_of(module)) is FlashAttentionImpl


@pytest.mark.usefixtures("has_kernel")
def test_a_batch_invariant_engine_keeps_its_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs, "VLLM_BATCH_INVARIANT", True, raising=False)
    module = make_module()
    replace_attention(module, make_compiling_config())
    assert type(impl_of(module)) is FlashAttentionImpl


def test_a_device_without_kernels_keeps_its_attention() -> None:
    module = make_module()
    replace_attention(module, make_compiling_config())
    assert type(impl_of(module)) is FlashAttentionImpl


def test_modules_that_are_no_attention_stay() -> None:
    module = nn.ModuleDict({"mlp": nn.Linear(2, 2)})
    module["mlp"].impl = SimpleNamespace()  # type: ignore[assignment]
    replace_attention(module, make_compiling_config())
    assert type(module["mlp"].impl) is SimpleNamespace
