"""`boundary_rms_norm_` as an operator, on the CPU: torch's own norm behind the boundary."""

import pytest
import torch

import shadow_kernels
from shadow_kernels import ShapeError, UnsupportedDtypeError
from shadow_kernels.testing import (
    MIXED_FLAGS,
    PAPER_FLAGS,
    POPULARITIES,
    TOLERANCE,
    assert_same_bits,
    make_boundary_norm_case,
    popularity_slots,
)

NUM_SLOTS = 7


def make_case(popularity="uniform", num_tokens=21, **options):
    slots = popularity_slots(popularity, num_tokens, NUM_SLOTS, seed=5)
    return make_boundary_norm_case(slots, num_adapter_slots=NUM_SLOTS, **options)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("popularity", POPULARITIES)
def test_every_row_has_a_norm(popularity, dtype):
    case = make_case(popularity, hidden_size=328, dtype=dtype, flags=MIXED_FLAGS)
    case.assert_correct(case.run())


def test_it_is_the_boundary_and_then_the_norm():
    case = make_case(dtype=torch.bfloat16, flags=[PAPER_FLAGS])
    _, _, state = case.run("cpu")
    assert_same_bits(state, case.boundary.run("cpu")[1], "state")


def test_a_row_without_adapter_has_the_same_bits_in_every_batch():
    case = make_case("base_mixed", dtype=torch.bfloat16)
    is_base = case.boundary.token_slots < 0
    mixed = case.run()
    case.boundary.segments.fill(case.boundary.token_slots * 0 - 1)
    for name, alone, beside in zip(("norm", "residual"), case.run(), mixed, strict=False):
        assert_same_bits(beside[is_base], alone[is_base], name)


def test_what_the_operator_mutates_is_declared():
    case = make_case(num_tokens=5)
    tensors = case.guarded_tensors()
    segments, weights = case.boundary.segments, case.boundary.weights
    torch.library.opcheck(
        torch.ops.shadow.boundary_rms_norm_.default,
        (*tensors, *segments.grouping, *weights, case.rms_weight, case.rms_eps),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


@pytest.mark.parametrize(
    ("name", "wrong", "error"),
    [
        ("rms_weight", torch.ones(255), ShapeError),
        ("rms_weight", torch.ones(256, dtype=torch.float64), UnsupportedDtypeError),
        ("rms_weight", torch.ones(512)[::2], ShapeError),
        ("residual", torch.ones(20, 256), ShapeError),
        ("hidden", torch.ones(21, 2, 128), ShapeError),
    ],
)
def test_wrong_arguments_are_named(name, wrong, error):
    case = make_case()
    hidden, residual, state = case.guarded_tensors()
    tensors = {"hidden": hidden, "residual": residual, "rms_weight": case.rms_weight, name: wrong}
    with pytest.raises(error, match=name):
        shadow_kernels.boundary_rms_norm_(
            tensors["hidden"], tensors["residual"], state, case.boundary.segments.grouping,
            case.boundary.weights, tensors["rms_weight"], 1e-6,
        )  # fmt: skip


def test_only_a_device_with_a_kernel_takes_the_norm():
    assert not shadow_kernels.has_fast_rms_norm("cpu", torch.bfloat16, 4096)
    assert not shadow_kernels.has_fast_rms_norm("xpu", torch.bfloat16, 4096)
