"""The CUDA `slot_linear` against the oracle. Needs an NVIDIA GPU and the built library."""

import numpy as np
import pytest
import torch

from shadow_kernels import BackendUnavailableError, StepSegments, slot_linear
from shadow_kernels.ops.slot_linear import cuda
from shadow_kernels.ops.slot_linear.cuda import CUTS, MAX_TOKENS
from shadow_kernels.testing import POPULARITIES, assert_close, assert_same_bits, popularity_slots
from slot_linear_case import make_slot_linear_case

NUM_SLOTS = 7
DTYPES = [torch.bfloat16, torch.float16]
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory")]


def make_case(popularity="uniform", num_tokens=MAX_TOKENS, shape=(1032, 70), **options):
    slots = popularity_slots(popularity, num_tokens, NUM_SLOTS, seed=2)
    return make_slot_linear_case(slots, *shape, num_slots=NUM_SLOTS, device="cuda", **options)


def run(case, cut=None):
    arguments = (case.x, case.weight, case.bias)
    if cut is None:
        return slot_linear(
            *arguments, case.segments.grouping, case.first_slot,
            extents=case.extents, num_chunks=case.num_chunks, backend="cuda",
        )  # fmt: skip
    assert cuda.can_run_on("cuda")
    return cuda.launch(
        *arguments, case.extents, case.num_chunks, case.segments.grouping, case.first_slot, cut
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("shape", [(4096, 3072), (1024, 4096), (256, 896), (8, 1), (1000, 33)])
def test_every_cut(cut, dtype, shape):
    case = make_case("skewed", MAX_TOKENS, shape, dtype=dtype, has_bias=shape[0] != 4096)
    case.assert_correct(run(case, cut))


@pytest.mark.parametrize("popularity", POPULARITIES)
@pytest.mark.parametrize("num_tokens", range(1, MAX_TOKENS + 1))
def test_any_number_of_tokens(popularity, num_tokens):
    case = make_case(popularity, num_tokens, (1024, 512))
    case.assert_correct(run(case))


@pytest.mark.parametrize("num_chunks", [1, 2])
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_rows_beyond_the_extents_are_not_read(cut, num_chunks):
    rows = 512 // num_chunks
    sizes = [(rows, 1024), (rows, 100), (9, 1024), (0, 1024), (rows, 0)]
    case = make_case("distinct", shape=(1024, 512), sizes=sizes, num_chunks=num_chunks)
    case.assert_correct(run(case, cut))


@pytest.mark.parametrize(("first_slot", "num_class_slots"), [(0, 2), (2, 3), (1, 1)])
@pytest.mark.parametrize("popularity", ["base_mixed", "distinct"])
def test_tokens_of_another_class_are_exact_zeros(popularity, first_slot, num_class_slots):
    case = make_case(popularity, first_slot=first_slot, num_class_slots=num_class_slots)
    case.assert_correct(run(case))


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_same_bits_in_ten_runs_and_alone(cut):
    case = make_case("zipf", shape=(4096, 512))
    first = run(case, cut)
    for _ in range(10):
        assert_same_bits(run(case, cut), first, "in another run")
    token = int(np.flatnonzero(case.token_slots >= 0)[-1])
    kept = np.where(np.arange(MAX_TOKENS) == token, case.token_slots, -1).astype(np.int32)
    assert_same_bits(run(case.with_slots(kept), cut)[token], first[token], "alone")


def test_what_no_kernel_takes_is_triton_s_or_refused():
    slots = popularity_slots("uniform", 7, NUM_SLOTS, seed=2)
    odd = make_slot_linear_case(slots, 1037, 41, num_slots=NUM_SLOTS, device="cuda")
    odd.assert_correct(slot_linear(odd.x, odd.weight, odd.bias, odd.segments.grouping))
    with pytest.raises(BackendUnavailableError, match="no kernel for 7 tokens and 1037 inputs"):
        run(odd)
    assert cuda.max_tokens(torch.zeros(1, 3072, 4096, dtype=torch.bfloat16, device="cuda")) == 2
    many = make_case("uniform", MAX_TOKENS + 1)
    many.assert_correct(slot_linear(many.x, many.weight, many.bias, many.segments.grouping))
    with pytest.raises(BackendUnavailableError, match=f"{MAX_TOKENS + 1} tokens"):
        run(many)


@pytest.mark.parametrize(
    ("num_tokens", "width"), [(MAX_TOKENS, 1024), (2, 2048), (24, 1024), (8, 512), (128, 512)]
)
def test_a_graph_replays_with_any_mix_of_adapters(num_tokens, width):
    """Products one behind the other, each launched while the one in front still runs."""
    weights = [
        torch.randn(NUM_SLOTS, width, width, device="cuda").bfloat16() * width**-0.5
        for _ in range(6)
    ]
    segments = StepSegments(num_tokens, NUM_SLOTS, "cuda")
    x = torch.randn(num_tokens, width, device="cuda").bfloat16()

    def step():
        out = x
        for weight in weights:
            out = slot_linear(out, weight, None, segments.grouping)
        return out

    segments.fill(popularity_slots("uniform", num_tokens, NUM_SLOTS, seed=1))
    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for number, popularity in enumerate(POPULARITIES):
        slots = popularity_slots(popularity, num_tokens, NUM_SLOTS, seed=number)
        segments.fill(slots)
        x.copy_(torch.randn(num_tokens, width))
        graph.replay()
        expected = x.double()
        for weight in weights:
            chosen = weight.double()[torch.from_numpy(np.maximum(slots, 0)).long().cuda()]
            expected = torch.einsum("tk,tnk->tn", expected, chosen).bfloat16().double()
        expected[torch.from_numpy(slots < 0).cuda()] = 0.0
        # Each of six products rounds another sum to its neighbour now and then.
        assert_close(captured, expected, f"replayed {popularity}", amplification=len(weights))
