"""The CUDA `boundary_rms_norm_` against the oracle. Needs an NVIDIA GPU and the built library."""

import numpy as np
import pytest
import torch

import shadow_kernels
from replayed import eager_and_replayed
from shadow_kernels.testing import (
    MIXED_FLAGS,
    PAPER_FLAGS,
    POPULARITIES,
    TOLERANCE,
    assert_same_bits,
    make_boundary_norm_case,
    popularity_slots,
)

pytestmark = pytest.mark.gpu
NUM_SLOTS = 7
DTYPES = list(TOLERANCE)
HIDDEN_SIZES = [64, 200, 896, 1000, 1024, 2560, 3584, 4096, 5120, 8192]


def make_case(popularity="uniform", num_tokens=21, **options):
    slots = popularity_slots(popularity, num_tokens, NUM_SLOTS, seed=2)
    return make_boundary_norm_case(slots, num_adapter_slots=NUM_SLOTS, device="cuda", **options)


def check(case):
    return case.assert_correct(case.run("cuda"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("popularity", POPULARITIES)
def test_every_row_has_a_norm(popularity, dtype):
    check(make_case(popularity, dtype=dtype, flags=MIXED_FLAGS))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden_size", HIDDEN_SIZES)
def test_the_hidden_sizes_of_models(hidden_size, dtype):
    check(make_case(num_tokens=9, hidden_size=hidden_size, dtype=dtype, flags=MIXED_FLAGS))


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 16, 64, 65, 300, 2049])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_any_number_of_tokens(num_tokens, dtype):
    check(make_case(num_tokens=num_tokens, hidden_size=1024, dtype=dtype, flags=MIXED_FLAGS))


@pytest.mark.parametrize(
    ("popularity", "num_tokens"),
    [("uniform", 1), ("uniform", 64), ("base_only", 1), ("base_only", 64), ("base_only", 2049)],
)
def test_the_norm_rounds_once(popularity, num_tokens):
    """Storing alone is off by up to 1.9e-3 of a wide row, rounding before the weight, too, by 2.5e-3.

    In larger steps the boundary stores hidden, which rounds, and the norm is of that.
    """
    case = make_case(popularity, num_tokens, hidden_size=4096, dtype=torch.bfloat16)
    assert check(case) <= 2e-3


@pytest.mark.parametrize("num_tokens", [1, 32, 128, 2049])
def test_the_same_bits_every_time(num_tokens):
    case = make_case(num_tokens=num_tokens, hidden_size=4096, dtype=torch.bfloat16)
    first = case.run("cuda")
    for _ in range(10):
        for name, expected, actual in zip(
            ("norm", "residual", "state"), first, case.run("cuda"), strict=True
        ):
            assert_same_bits(actual, expected, name)


@pytest.mark.parametrize("hidden_size", [328, 1024, 2560, 4096])
@pytest.mark.parametrize("num_tokens", [2, 40, 300, 2049])
def test_a_base_row_has_the_same_bits_in_every_batch(num_tokens, hidden_size):
    """Beside adapters, in whichever kernel, and in a step without any, where only the norm runs."""
    slots = np.where(np.arange(num_tokens) % 2, 3, -1).astype(np.int32)
    case = make_boundary_norm_case(
        slots, num_adapter_slots=NUM_SLOTS, device="cuda", hidden_size=hidden_size,
        dtype=torch.bfloat16, flags=[PAPER_FLAGS],
    )  # fmt: skip
    mixed = case.run("cuda")
    case.boundary.segments.fill(np.full(num_tokens, -1, np.int32))
    alone = case.run("cuda")
    for name, beside, own in zip(("norm", "residual"), mixed, alone, strict=False):
        assert_same_bits(beside[::2], own[::2], name)
        assert not torch.equal(beside[1::2], own[1::2])


@pytest.mark.parametrize("num_tokens", [2, 64, 128, 2049])
def test_layers_in_a_row_inside_a_graph(num_tokens):
    """Each launch may start before the one in front of it has ended; what it reads of it must still be whole."""
    case = make_case(
        num_tokens=num_tokens, hidden_size=4096, dtype=torch.bfloat16, flags=[PAPER_FLAGS]
    )
    rest = (*case.boundary.segments.grouping, *case.boundary.weights, case.rms_weight, case.rms_eps)

    def layers(*tensors):
        for _ in range(20):
            torch.ops.shadow.boundary_rms_norm_(*tensors, *rest)

    results = eager_and_replayed(case.guarded_tensors(), layers)
    for name, eager, replayed in zip(("hidden", "residual", "state"), *results, strict=True):
        assert_same_bits(replayed, eager, name)
    assert results[0][0].isfinite().all()


def test_sizes_without_a_boundary_kernel_have_the_norm_still():
    case = make_case(gate_size=33, rank=64)
    case.assert_correct(case.run("auto"))


def test_rows_that_nothing_wide_fits_have_torch_s_norm():
    assert not shadow_kernels.has_fast_rms_norm("cuda", torch.bfloat16, 1001)
    case = make_case(hidden_size=1001, dtype=torch.bfloat16)
    case.assert_correct(case.run("auto"))


def test_rows_beside_16_bytes_have_torch_s_norm():
    case = make_case(hidden_size=1024, dtype=torch.bfloat16)
    hidden, residual, state = case.guarded_tensors()
    wide = torch.full((len(hidden), 1030), torch.nan, dtype=torch.bfloat16, device="cuda")
    beside = wide[:, 1:1025]
    beside.copy_(hidden)
    shadow_kernels.boundary_rms_norm_(
        beside, residual, state, case.boundary.segments.grouping, case.boundary.weights,
        case.rms_weight, case.rms_eps,
    )  # fmt: skip
    case.assert_correct((beside, residual, state))
    assert wide[:, 0].isnan().all()


def test_it_is_worth_giving_the_norm_away():
    assert shadow_kernels.has_fast_rms_norm("cuda", torch.bfloat16, 4096)
