"""`dense_linear` where torch's own product runs, and what it refuses."""

import pytest
import torch

from shadow_kernels import (
    BackendUnavailableError,
    ShapeError,
    UnsupportedDtypeError,
    dense_linear,
    has_fast_dense_linear,
)
from shadow_kernels.ops.dense_linear.reference import dense_linear_reference
from shadow_kernels.testing import assert_close


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("has_bias", [True, False])
def test_against_the_oracle(dtype, has_bias):
    generator = torch.Generator().manual_seed(1)
    x, weight, bias = (
        torch.randn(*size, generator=generator).to(dtype) for size in ((5, 33), (7, 33), (7,))
    )
    arguments = (x, weight, bias if has_bias else None)
    assert_close(dense_linear(*arguments), dense_linear_reference(*arguments), "out")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(3, 4, 5)}, ShapeError, "x must be"),
        ({"weight": torch.zeros(7, 5)}, ShapeError, r"weight must have shape \(7, 4\)"),
        ({"weight": torch.zeros(7, 4).half()}, UnsupportedDtypeError, "weight must be"),
        ({"x": torch.zeros(3, 4).int()}, UnsupportedDtypeError, "x must be"),
        ({"bias": torch.zeros(6)}, ShapeError, r"bias must have shape \(7,\)"),
        ({"bias": torch.zeros(7).half()}, UnsupportedDtypeError, "bias must be"),
    ],
)
def test_what_is_wrong_is_named(changes, error, message):
    arguments = {"x": torch.zeros(3, 4), "weight": torch.zeros(7, 4), "bias": torch.zeros(7)}
    with pytest.raises(error, match=message):
        dense_linear(**arguments | changes)


def test_a_named_backend_fails_where_it_cannot_run():
    with pytest.raises(BackendUnavailableError, match="cannot run on device type 'cpu'"):
        dense_linear(torch.zeros(3, 4), torch.zeros(7, 4), backend="cuda")
    assert not has_fast_dense_linear(torch.zeros(4096, 4096, dtype=torch.bfloat16))


def test_compiled_code_may_hold_it():
    weight = torch.nn.Parameter(torch.randn(7, 4), requires_grad=False)
    compiled = torch.compile(
        lambda x: torch.ops.shadow.dense_linear(x, weight, None) + 1, fullgraph=True
    )
    x = torch.randn(3, 4)
    torch.testing.assert_close(compiled(x), x @ weight.T + 1)
