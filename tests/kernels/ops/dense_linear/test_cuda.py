"""The CUDA `dense_linear` against the oracle. Needs an NVIDIA GPU of compute capability 9.0 and the built library."""

import pytest
import torch

import shadow_kernels
from shadow_kernels import BackendUnavailableError, dense_linear
from shadow_kernels.ops.dense_linear import cuda
from shadow_kernels.ops.dense_linear.cuda import MAX_TOKENS
from shadow_kernels.ops.dense_linear.reference import dense_linear_reference
from shadow_kernels.testing import assert_close, assert_guards_intact, assert_same_bits, guarded

DTYPES = [torch.bfloat16, torch.float16]
SIZES = [
    # one for every cut on 132 multiprocessors
    (6144, 256), (8448, 1024), (12288, 1024), (16384, 1024), (19456, 1200), (24576, 1024), (28672, 512), (33024, 512),
    (2560, 640), (4096, 4096), (6144, 4096), (1024, 1536), (2048, 1536), (2560, 4096), (1024, 4096),
    # what no tile and no step divides
    (8, 8), (1000, 1032), (2056, 200), (4104, 4104), (512, 12288),
]  # fmt: skip
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("needs_instructions")]


@pytest.fixture(scope="module")
def needs_instructions():
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("compute capability 9.0 alone has these products")


def random(*size, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator(device="cuda").manual_seed(seed)
    return torch.randn(size, generator=generator, device="cuda").to(dtype)


def make_weight(num_outputs, num_inputs, **options):
    return random(num_outputs, num_inputs, **options) * num_inputs**-0.5


def check(x, weight, bias=None):
    """Run beside NaN on all sides and compare with the oracle."""
    x, weight = guarded(x), guarded(weight)
    out = guarded(x.new_full((len(x), len(weight)), torch.nan))
    torch.ops.shadow_cuda.dense_linear(out, x, weight, bias)
    assert_guards_intact(out)
    assert_close(out, dense_linear_reference(x, weight, bias), "out")
    return out


@pytest.fixture(scope="module", autouse=True)
def library():
    assert cuda.can_run_on("cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 8, 9, 31, 32, 33, MAX_TOKENS])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_cut(size, num_tokens, dtype):
    x = random(num_tokens, size[1], dtype=dtype, seed=num_tokens)
    bias = random(size[0], dtype=dtype) if num_tokens % 2 else None
    check(x, make_weight(*size, dtype=dtype), bias)


def test_a_row_has_the_same_bits_in_every_step():
    for size in SIZES:
        weight, x = make_weight(*size), random(MAX_TOKENS, size[1])
        whole = check(x, weight)
        for num_tokens in (1, 7, 16, 31):
            assert_same_bits(check(x[-num_tokens:], weight), whole[-num_tokens:], f"{size}")
        for _ in range(10):
            assert_same_bits(dense_linear(x, weight, backend="cuda"), whole, "in another run")


def test_rows_that_lie_apart():
    """Columns of a wider tensor, as the queries of a fused projection are."""
    wide = random(5, 3 * 512).fill_(torch.nan)
    x = wide[:, 512:1024]
    x.copy_(random(5, 512))
    weight = random(96, 2 * 512).fill_(torch.nan)[:, :512]
    weight.copy_(make_weight(96, 512))
    out = dense_linear(x, weight, backend="cuda")
    assert_close(out, dense_linear_reference(x, weight, None), "out")


@pytest.mark.parametrize(
    ("x", "weight"),
    [((MAX_TOKENS + 1, 512), (64, 512)), ((3, 500), (64, 500)), ((3, 512), (63, 512)), ((3, 64), (1 << 16, 64))],
    ids=["tokens", "inputs", "outputs", "a large vocabulary"],
)  # fmt: skip
def test_what_no_kernel_takes_is_torch_s_or_refused(x, weight):
    x, weight = random(*x), make_weight(*weight)
    assert_close(dense_linear(x, weight), dense_linear_reference(x, weight, None), "out")
    with pytest.raises(BackendUnavailableError, match=f"no kernel for {len(x)} tokens"):
        dense_linear(x, weight, backend="cuda")


def test_other_layouts_and_dtypes_are_torch_s():
    x, weight = random(4, 512), make_weight(64, 512)
    for other_x, other_weight in (
        (x.float(), weight.float()), (x.T.contiguous().T, weight), (x, weight.T.contiguous().T),
        (random(4 * 512 + 1)[1:].view(4, 512), weight), (x[:0], weight),
    ):  # fmt: skip
        assert not cuda.has_kernel_for(other_x, other_weight, None)
        out = dense_linear(other_x, other_weight)
        assert_same_bits(out, torch.nn.functional.linear(other_x, other_weight), "out")


def test_only_large_weights_are_worth_while():
    assert shadow_kernels.has_fast_dense_linear(make_weight(4096, 4096))
    assert not shadow_kernels.has_fast_dense_linear(make_weight(64, 4096))
    assert not shadow_kernels.has_fast_dense_linear(make_weight(4096, 4096).float())


@pytest.mark.parametrize("num_tokens", [1, 8, 32, 64])
def test_a_graph_of_products_replays(num_tokens):
    """Products one behind the other, each launched while the one in front still runs."""
    sizes = [(1024, 2048), (2048, 1024), (4096, 2048), (8448, 4096), (2048, 8448)]
    weights = [make_weight(*size, seed=number) for number, size in enumerate(sizes)]
    x = random(num_tokens, sizes[0][1])

    def step():
        out = x
        for weight in weights:
            out = dense_linear(out, weight, backend="cuda")
        return out

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for number in range(20):
        x.copy_(random(num_tokens, sizes[0][1], seed=number))
        graph.replay()
        assert_same_bits(captured.clone(), step(), f"replay {number}")
        expected = x.double()
        for weight in weights:
            expected = (expected @ weight.double().T).bfloat16().double()
        assert_close(captured, expected, f"replay {number}", amplification=len(weights))
