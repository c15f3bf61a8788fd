"""The vectorised `boundary_` against the oracle, and the assert against sabotage."""

import dataclasses

import numpy as np
import pytest
import torch

from boundary_sabotage import SABOTAGE
from shadow_kernels import NO_ADAPTER, BoundaryFlag
from shadow_kernels.testing import (
    MIXED_FLAGS,
    PAPER_FLAGS,
    PEFT_FLAGS,
    POPULARITIES,
    TOLERANCE,
    BoundaryCase,
    make_boundary_case,
    popularity_slots,
)

NUM_SLOTS = 7
DTYPES = list(TOLERANCE)


def make_case(popularity="uniform", num_tokens=33, **options) -> BoundaryCase:
    slots = popularity_slots(popularity, num_tokens, NUM_SLOTS, seed=5)
    return make_boundary_case(slots, num_adapter_slots=NUM_SLOTS, **options)


def check(case: BoundaryCase) -> float:
    return case.assert_correct(case.run("cpu"), case.expected())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("popularity", POPULARITIES)
def test_each_token_gets_its_own_adapter(popularity, dtype):
    check(make_case(popularity, 133, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rank", "gate_size"), [(8, 8), (10, 10), (16, 8), (1, 1), (64, 3)])
@pytest.mark.parametrize("hidden_size", [1000, 1024, 2560])
def test_any_width_and_rank(hidden_size, rank, gate_size, dtype):
    check(
        make_case(
            num_tokens=7, hidden_size=hidden_size, rank=rank, gate_size=gate_size, dtype=dtype
        )
    )


@pytest.mark.parametrize("num_tokens", [1, 2, 16, 17, 2049])
@pytest.mark.parametrize("has_residual", [True, False])
def test_any_number_of_tokens(num_tokens, has_residual):
    check(make_case(num_tokens=num_tokens, hidden_size=64, has_residual=has_residual))


@pytest.mark.parametrize("flags", range(32))
def test_every_combination_of_flags(flags):
    check(make_case("distinct", hidden_size=96, flags=[flags]))


def test_no_tokens_at_all():
    hidden, state = make_case("identical", 0).run("cpu")
    assert hidden.shape[0] == 0
    assert state.isnan().all()


def test_padded_rows_beyond_the_step_are_left_alone():
    case = make_case("identical", 20)
    case.segments.fill(case.token_slots[:9])
    padded = dataclasses.replace(
        case, token_slots=np.where(np.arange(20) < 9, case.token_slots, NO_ADAPTER)
    )
    check(padded)


def test_the_correction_is_no_rounding_error():
    """Non-vacuity: what the asserts see moves by at least a third of its size where an adapter acts."""
    case = make_case("distinct", flags=[PAPER_FLAGS, PEFT_FLAGS])
    for before, after in zip((case.hidden, case.state), case.run("cpu"), strict=True):
        rows = len(case.hidden)
        moved = (after[:rows] - before[:rows]).square().mean(1).sqrt()
        assert (moved / before[:rows].square().mean(1).sqrt()).min() > 1 / 3


def test_a_row_does_not_depend_on_its_batch():
    """Each row of a mixed batch against the row alone; torch's own products may group sums by the batch's size."""
    case = make_case(num_tokens=16, flags=[PAPER_FLAGS, PEFT_FLAGS])
    hidden, _ = case.run("cpu")
    for token in np.flatnonzero(case.token_slots != NO_ADAPTER):
        alone = dataclasses.replace(case, **_row(case, int(token)))
        alone.segments.fill(alone.token_slots)
        row = alone.run("cpu")[0][0]
        torch.testing.assert_close(row, hidden[token], rtol=2e-6, atol=2e-6)


def _row(case: BoundaryCase, token: int) -> dict[str, object]:
    rows = slice(token, token + 1)
    tensors = {name: getattr(case, name)[rows] for name in ("hidden", "residual", "state")}
    return {**tensors, "token_slots": case.token_slots[rows]}


@pytest.mark.parametrize("sabotage", SABOTAGE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [14, 700])
def test_the_assert_sees_sabotage(sabotage, dtype, num_tokens):
    """Each version of a wrong kernel must fail, in a small batch and hidden in a large one."""
    slots = popularity_slots("distinct", num_tokens, NUM_SLOTS, seed=0)
    # all flags: everything that a sabotage switches off is in use; the activation alternates
    flags = [int(BoundaryFlag(31)), int(BoundaryFlag(31) ^ BoundaryFlag.GELU)]
    case = make_boundary_case(
        slots, num_adapter_slots=NUM_SLOTS, hidden_size=96, dtype=dtype, flags=flags
    )
    oracle = case.expected()
    case.assert_correct(case.run("cpu"), oracle)
    with pytest.raises(AssertionError):
        case.assert_correct(SABOTAGE[sabotage](case).run("cpu"), oracle)


def test_the_assert_sees_a_touched_row_without_adapter():
    case = make_case("base_mixed")
    hidden, state = case.run("cpu")
    hidden[int(np.flatnonzero(case.token_slots == NO_ADAPTER)[0])] = 0.0
    with pytest.raises(AssertionError, match="without adapter"):
        case.assert_correct((hidden, state), case.expected())


def test_mixed_flags_hold_both_formats_and_a_silent_slot():
    assert {PAPER_FLAGS, PEFT_FLAGS, 0} <= set(MIXED_FLAGS)
