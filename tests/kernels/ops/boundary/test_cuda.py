"""The CUDA `boundary_` against the oracle. Needs an NVIDIA GPU and the built library."""

import dataclasses

import numpy as np
import pytest
import torch

from boundary_sabotage import SABOTAGE
from replayed import eager_and_replayed
from shadow_kernels import NO_ADAPTER, BackendUnavailableError, BoundaryFlag
from shadow_kernels.testing import (
    PAPER_FLAGS,
    POPULARITIES,
    TOLERANCE,
    BoundaryCase,
    assert_same_bits,
    make_boundary_case,
    popularity_slots,
)

pytestmark = pytest.mark.gpu
NUM_SLOTS = 7
DTYPES = list(TOLERANCE)
HALF_DTYPES = [torch.bfloat16, torch.float16]


def make_case(popularity="uniform", num_tokens=21, **options) -> BoundaryCase:
    num_slots = options.pop("num_adapter_slots", NUM_SLOTS)
    slots = popularity_slots(popularity, num_tokens, num_slots, seed=2)
    return make_boundary_case(slots, num_adapter_slots=num_slots, device="cuda", **options)


def check(case: BoundaryCase) -> None:
    case.assert_correct(case.run("cuda"), case.expected())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("popularity", POPULARITIES)
def test_each_token_gets_its_own_adapter(popularity, dtype):
    check(make_case(popularity, 133, hidden_size=1024, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden_size", [896, 1000, 1024, 2560, 3584, 4096, 5120, 8192])
def test_the_hidden_sizes_of_models(hidden_size, dtype):
    check(make_case(num_tokens=40, hidden_size=hidden_size, rank=16, gate_size=8, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden_size", [1, 48, 130, 1001, 2049])
def test_hidden_sizes_that_no_wide_access_fits(hidden_size, dtype):
    check(make_case(hidden_size=hidden_size, dtype=dtype, has_residual=hidden_size != 130))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rank", "gate_size"), [(4, 1), (8, 8), (10, 10), (16, 16), (17, 8), (32, 10), (64, 16)]
)
@pytest.mark.parametrize("hidden_size", [1000, 4096])
def test_any_rank_and_gate(rank, gate_size, hidden_size, dtype):
    check(make_case(hidden_size=hidden_size, rank=rank, gate_size=gate_size, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [40, 1500])
def test_weights_that_no_cluster_holds(num_tokens, dtype):
    """The largest shapes run as three launches with scratch, many tokens as blocks of a tile each."""
    check(make_case(num_tokens=num_tokens, hidden_size=8192, rank=64, gate_size=16, dtype=dtype))


@pytest.mark.parametrize("num_slots", [31, 33, 64, 70])
def test_any_number_of_slots(num_slots):
    check(make_case("distinct", 100, num_adapter_slots=num_slots, hidden_size=512))


@pytest.mark.parametrize("num_tokens", [1, 2, 8, 9, 16, 17, 2049])
@pytest.mark.parametrize("has_residual", [True, False])
@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_any_number_of_tokens(num_tokens, has_residual, dtype):
    check(
        make_case(num_tokens=num_tokens, hidden_size=2560, has_residual=has_residual, dtype=dtype)
    )


@pytest.mark.parametrize("popularity", ["identical", "zipf", "base_mixed"])
def test_more_tiles_than_run_at_once(popularity):
    """Clusters that take a range of tiles keep the weights of one slot and change them between slots."""
    check(make_case(popularity, 3000, hidden_size=4096, dtype=torch.bfloat16))


@pytest.mark.parametrize("num_tokens", [209, 300, 449, 600])
@pytest.mark.parametrize("popularity", ["distinct", "skewed"])
def test_numbers_of_tokens_around_the_unit_kernel_s_end(popularity, num_tokens):
    """There a cluster of the range kernel may have a tile that the step does not use, or begin in the middle of one."""
    check(
        make_case(popularity, num_tokens, num_adapter_slots=32, hidden_size=4096, dtype=torch.bfloat16)
    )  # fmt: skip


@pytest.mark.parametrize("flags", range(32))
def test_every_combination_of_flags(flags):
    check(make_case("distinct", 5, hidden_size=136, flags=[flags]))


@pytest.mark.parametrize("flags", [1, 2, 7, 27])
def test_slots_of_other_flags_in_one_cluster_s_range(flags):
    check(make_case("distinct", 1200, hidden_size=136, flags=[flags, 7, flags ^ 1, 0]))


def test_an_offset_norm_loses_no_digits():
    """A mean far from zero: moments that were summed as raw squares would be off by orders of magnitude."""
    case = make_case(hidden_size=520, flags=[int(BoundaryFlag.UPDATE | BoundaryFlag.NORM)])
    case.residual.add_(200.0)
    _, state = case.run("cuda")
    _, expected = case.expected()
    rows = torch.from_numpy(np.flatnonzero(case.token_slots != NO_ADAPTER)).cuda()
    assert (state[rows].double() - expected[rows]).abs().max() < 1e-3


def test_rows_of_a_wider_buffer():
    case = make_case(hidden_size=1024, dtype=torch.bfloat16)
    wide = torch.full((len(case.hidden), 1100), torch.nan, dtype=torch.bfloat16, device="cuda")
    wide[:, :1024] = case.residual
    check(dataclasses.replace(case, residual=wide[:, :1024]))


def test_padded_rows_beyond_the_step_are_left_alone():
    case = make_case("identical", 20)
    case.segments.fill(case.token_slots[:9])
    kept = np.where(np.arange(20) < 9, case.token_slots, NO_ADAPTER)
    check(dataclasses.replace(case, token_slots=kept))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [32, 2049])
def test_the_same_bits_every_time(num_tokens, dtype):
    case = make_case(num_tokens=num_tokens, hidden_size=4096, dtype=dtype)
    first = case.run("cuda")
    for _ in range(10):
        for name, expected, actual in zip(
            ("hidden", "state"), first, case.run("cuda"), strict=True
        ):
            assert_same_bits(actual, expected, name)


@pytest.mark.parametrize(
    ("popularity", "num_tokens", "num_alone", "hidden_size"),
    [
        ("uniform", 3000, 2400, 1024),
        ("uniform", 1000, 65, 1024),
        ("uniform", 64, 3, 4096),
        ("distinct", 2, 1, 4096),
    ],
)
def test_a_row_does_not_depend_on_its_batch(popularity, num_tokens, num_alone, hidden_size):
    """For up to 2 tokens, up to 64, up to where tiles get a block each, and for more: one order of sums in each."""
    case = make_case(popularity, num_tokens, hidden_size=hidden_size, dtype=torch.bfloat16)
    hidden, state = case.run("cuda")
    rows = slice(num_tokens - num_alone, num_tokens)
    assert (case.token_slots[rows] != NO_ADAPTER).any()
    tensors = {name: getattr(case, name)[rows] for name in ("hidden", "residual", "state")}
    alone = dataclasses.replace(case, **tensors, token_slots=case.token_slots[rows])
    alone.segments.fill(alone.token_slots)
    own_hidden, own_state = alone.run("cuda")
    assert_same_bits(own_hidden, hidden[rows], "hidden")
    assert_same_bits(own_state, state[rows], "state")


@pytest.mark.parametrize("num_tokens", [32, 1024])
def test_one_graph_serves_any_mix(num_tokens):
    """Captured once; replayed over other slots, fewer tokens, none, and other weights in the same slots."""
    every_slot = popularity_slots("distinct", num_tokens, NUM_SLOTS, seed=0)
    case = make_boundary_case(
        every_slot,
        num_adapter_slots=NUM_SLOTS,
        hidden_size=1024,
        device="cuda",
        dtype=torch.bfloat16,
    )
    hidden, state = case.hidden.clone(), case.state.clone()
    graph = torch.cuda.CUDAGraph()
    run = (case.residual, state, *case.segments.grouping, *case.weights)
    torch.ops.shadow.boundary_(hidden, *run)
    with torch.cuda.graph(graph):
        torch.ops.shadow.boundary_(hidden, *run)
    for seed, popularity in enumerate([*POPULARITIES, "base_only", "distinct"]):
        slots = popularity_slots(popularity, num_tokens, NUM_SLOTS, seed=seed)
        case.weights.up.mul_(-1.25)
        case.segments.fill(slots)
        hidden.copy_(case.hidden)
        state.copy_(case.state)
        graph.replay()
        step = dataclasses.replace(case, token_slots=slots)
        step.assert_correct((hidden, state), step.expected())


def test_layers_in_a_row_inside_a_graph():
    """Each launch may start before the one in front of it has ended; what it reads of it must still be whole."""
    case = make_case(num_tokens=64, hidden_size=4096, dtype=torch.bfloat16, flags=[PAPER_FLAGS])
    rest = (*case.segments.grouping, *case.weights)

    def layers(hidden, state):
        for _ in range(20):
            torch.ops.shadow.boundary_(hidden, case.residual, state, *rest)
            hidden.mul_(0.7)

    results = eager_and_replayed((case.hidden, case.state), layers)
    for name, eager, replayed in zip(("hidden", "state"), *results, strict=True):
        assert_same_bits(replayed, eager, name)


def test_sizes_without_a_kernel_fall_back_or_fail_loudly():
    case = make_case(gate_size=33, rank=64)
    with pytest.raises(BackendUnavailableError, match="gate size 33"):
        case.run("cuda")
    case.assert_correct(case.run("auto"), case.expected())


@pytest.mark.parametrize("sabotage", SABOTAGE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [14, 700])
def test_the_assert_sees_sabotage(sabotage, dtype, num_tokens):
    flags = [int(BoundaryFlag(31)), int(BoundaryFlag(31) ^ BoundaryFlag.GELU)]
    case = make_case("distinct", num_tokens, hidden_size=96, dtype=dtype, flags=flags)
    oracle = case.expected()
    case.assert_correct(case.run("cuda"), oracle)
    with pytest.raises(AssertionError):
        case.assert_correct(SABOTAGE[sabotage](case).run("cuda"), oracle)
