"""The CUDA `decode_attention` against the oracle. Needs compute capability 9.0 and the built library."""

import pytest
import torch

from shadow_kernels import decode_attention, has_fast_decode_attention, takes_decode_attention
from shadow_kernels.dispatch import new_arrivals
from shadow_kernels.ops.decode_attention import cuda
from shadow_kernels.testing import assert_close, assert_guards_intact, assert_same_bits, guarded
from shadow_kernels.testing_attention import Sizes, make_decode_case

DTYPES = [torch.bfloat16, torch.float16]
DEVICE = torch.device("cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("needs_device")]


@pytest.fixture(scope="module")
def needs_device():
    if not cuda.can_run_on("cuda"):
        pytest.skip("needs compute capability 9.0 and the library")


@pytest.fixture
def arrivals():
    """Zero before and after."""
    numbers = new_arrivals(DEVICE)
    yield numbers
    assert not numbers.any()


def run(case, arrivals):
    """Return (T, H * D), written beside guards."""
    num_tokens, num_heads, head_size = case.query.shape
    out = guarded(case.query.new_full((num_tokens, num_heads * head_size), torch.nan))
    decode_attention(*case.arguments, out.view(case.query.shape), arrivals)
    assert_guards_intact(out)
    return out


def check(case, arrivals):
    out = run(case, arrivals)
    assert_close(out, case.expected().flatten(1), "out")
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_size", cuda.HEAD_SIZES)
@pytest.mark.parametrize("group_size", [1, 2, 3, 4, 5, 7, 8])
def test_every_kernel_and_group(group_size, head_size, dtype, arrivals):
    sizes = Sizes(4 * group_size, 4, head_size)
    for lengths in ([1, 2, 15, 16, 17, 63, 64, 65, 130, 192, 193, 320], [193], [5000, 3, 700]):
        check(make_decode_case(lengths, sizes, dtype=dtype, device="cuda"), arrivals)


@pytest.mark.parametrize("page_size", [16, 32, 64, 256])
@pytest.mark.parametrize("heads_outside", [False, True])
def test_layouts_of_the_cache(heads_outside, page_size, arrivals):
    sizes = Sizes(32, 8, 128, page_size)
    case = make_decode_case(
        [130, 1000, 17, 2100], sizes, device="cuda", heads_outside=heads_outside
    )
    check(case, arrivals)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 3, 8, 20, 64])
@pytest.mark.parametrize("num_sequences", [1, 2, 127, 128, 129, 300])
def test_any_number_of_sequences_and_heads(num_sequences, num_kv_heads, arrivals):
    lengths = [7 * number % 61 for number in range(num_sequences)]
    lengths[-1], lengths[num_sequences // 2] = 4000, 1500
    check(make_decode_case(lengths, Sizes(num_kv_heads, num_kv_heads, 64), device="cuda"), arrivals)


def test_one_long_sequence_among_short_ones(arrivals):
    lengths = [130] * 128
    for place in (0, 64, 127):
        lengths[place] = 30000 - place
    check(make_decode_case(lengths, Sizes(32, 8), device="cuda"), arrivals)


def test_a_single_very_long_sequence(arrivals):
    check(make_decode_case([100_003], Sizes(32, 8), device="cuda"), arrivals)


def test_sequences_without_tokens_are_zeros(arrivals):
    case = make_decode_case([0, 5, 0, 2000, 0], Sizes(32, 8), device="cuda")
    out = check(case, arrivals)
    assert not out[[0, 2, 4]].any()


@pytest.mark.parametrize("sharpness", [0.0, 20.0, -20.0])
def test_flat_and_sharp_scores(sharpness, arrivals):
    case = make_decode_case(
        [1, 40, 3000, 333], Sizes(32, 8), device="cuda", sharpness=sharpness, seed=5
    )
    check(case, arrivals)


def test_a_short_sequence_has_the_same_bits_in_every_step(arrivals):
    case = make_decode_case([130, 192, 9, 9000, 64], Sizes(32, 8), device="cuda")
    whole = check(case, arrivals)
    for number in (0, 1, 2, 4):
        alone = run(case.row(number), arrivals)
        assert_same_bits(alone, whole[number : number + 1], f"sequence {number}")
    for _ in range(20):
        assert_same_bits(run(case, arrivals), whole, "in another run")


def test_a_graph_replays_with_other_lengths(arrivals):
    """Two calls, the second over what the first one wrote, each launched while the one in front still runs."""
    case = make_decode_case([2000, 600, 130, 1], Sizes(32, 8), device="cuda")
    case.seq_lens[len(case.query) :] = 0
    first, second = torch.empty_like(case.query), torch.empty_like(case.query)

    def step():
        decode_attention(*case.arguments, first, arrivals)
        decode_attention(first, *case.arguments[1:], second, arrivals)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for lengths in ([2000, 600, 130, 1], [1999, 1, 0, 1], [17, 600, 130, 0], [0, 0, 0, 0]):
        case.seq_lens[:4] = torch.tensor(lengths, dtype=torch.int32)
        second.fill_(torch.nan)
        graph.replay()
        replayed = second.clone()
        step()
        assert_same_bits(replayed.flatten(1), second.flatten(1), f"{lengths}")


def test_what_has_no_kernel_is_said():
    case = make_decode_case([5], Sizes(32, 8), device="cuda")
    out = torch.empty_like(case.query)
    tensors = case.query, case.key_cache, case.value_cache
    assert takes_decode_attention(*tensors, out)
    assert not takes_decode_attention(*tensors, out.transpose(1, 2).contiguous().transpose(1, 2))
    assert not takes_decode_attention(*(tensor[..., :96] for tensor in (*tensors, out)))
    assert not takes_decode_attention(*tensors[:2], case.value_cache.contiguous(), out)
    odd_pages = [cache[:, :12] for cache in tensors[1:]]
    assert not takes_decode_attention(case.query, *odd_pages, out)
    assert has_fast_decode_attention("cuda", torch.bfloat16, 32, 8, 128)
    assert not has_fast_decode_attention("cuda", torch.bfloat16, 36, 4, 128)
    assert not has_fast_decode_attention("cuda", torch.float32, 32, 8, 128)
