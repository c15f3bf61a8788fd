"""`silu_and_mul` where no kernel takes it, and what it refuses."""

import pytest
import torch

from shadow_kernels import ShapeError, UnsupportedDtypeError, has_fast_silu_and_mul, silu_and_mul
from shadow_kernels.testing import assert_close


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_against_the_oracle(dtype):
    x = 4 * torch.randn(5, 22, generator=torch.Generator().manual_seed(1)).to(dtype)
    gate, up = x.double().chunk(2, dim=1)
    assert_close(silu_and_mul(x), gate * torch.sigmoid(gate) * up, "out")


def test_what_is_wrong_is_named():
    with pytest.raises(ShapeError, match="x must be"):
        silu_and_mul(torch.zeros(3, 5))
    with pytest.raises(ShapeError, match="x must be"):
        silu_and_mul(torch.zeros(3, 2, 4))
    with pytest.raises(UnsupportedDtypeError, match="x must be"):
        silu_and_mul(torch.zeros(3, 4, dtype=torch.int32))
    assert not has_fast_silu_and_mul("cpu")


def test_compiled_code_may_hold_it():
    compiled = torch.compile(lambda x: torch.ops.shadow.silu_and_mul(x) + 1, fullgraph=True)
    x = torch.randn(3, 8)
    torch.testing.assert_close(compiled(x), silu_and_mul(x) + 1)
