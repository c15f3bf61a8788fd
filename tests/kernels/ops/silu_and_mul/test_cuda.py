"""The CUDA `silu_and_mul` against the oracle. Needs an NVIDIA GPU and the built library."""

import pytest
import torch

from shadow_kernels import has_fast_silu_and_mul, silu_and_mul
from shadow_kernels.ops.silu_and_mul import cuda
from shadow_kernels.testing import assert_close, assert_guards_intact, assert_same_bits, guarded

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def library():
    assert cuda.can_run_on("cuda")


def make_x(num_tokens, columns, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator(device="cuda").manual_seed(seed)
    return 4 * torch.randn(num_tokens, 2 * columns, generator=generator, device="cuda").to(dtype)


def expected_of(x):
    gate, up = x.double().chunk(2, dim=1)
    return gate * torch.sigmoid(gate) * up


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 3, 128, 1000])
@pytest.mark.parametrize("columns", [8, 1000, 3072, 12288])
def test_against_the_oracle(columns, num_tokens, dtype):
    x = guarded(make_x(num_tokens, columns, dtype))
    out = guarded(x.new_full((num_tokens, columns), torch.nan))
    torch.ops.shadow_cuda.silu_and_mul(out, x)
    assert_guards_intact(out)
    assert_close(out, expected_of(x), "out")


def test_extremes_are_those_of_torch():
    gate = torch.tensor([0.0, -0.0, 88.0, -88.0, 3e38, -3e38, torch.inf, torch.nan], device="cuda")
    x = torch.cat([gate, torch.ones_like(gate)]).repeat(2, 1)
    expected = torch.nn.functional.silu(gate).repeat(2, 1)
    torch.testing.assert_close(silu_and_mul(x), expected, rtol=1e-5, atol=1e-36, equal_nan=True)


def test_other_layouts_are_torch_s():
    for x in (make_x(3, 12)[:, :20], make_x(3, 16).T.contiguous().T, make_x(3, 17)[:, 1:33]):
        assert not cuda.has_kernel_for(x)
        assert_close(silu_and_mul(x), expected_of(x), "out")
    assert has_fast_silu_and_mul("cuda")


def test_a_graph_replays():
    """One behind the other, each launched while the one in front still runs."""
    x = make_x(16, 4096)

    def step():
        once = silu_and_mul(x)
        return silu_and_mul(torch.ops.shadow.silu_and_mul(once))

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in range(10):
        x.copy_(make_x(16, 4096, seed=seed))
        graph.replay()
        assert_same_bits(captured.clone(), step(), f"replay {seed}")
