"""The Triton `boundary_` against the oracle: on a GPU, or anywhere under TRITON_INTERPRET=1."""

import os

import pytest
import torch

from shadow_kernels.testing import POPULARITIES, TOLERANCE, make_boundary_case, popularity_slots

pytestmark = pytest.mark.gpu
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
NUM_SLOTS = 5


def check(popularity="uniform", num_tokens=21, *, dtype=torch.float32, **options) -> None:
    slots = popularity_slots(popularity, num_tokens, NUM_SLOTS, seed=2)
    case = make_boundary_case(
        slots, num_adapter_slots=NUM_SLOTS, dtype=dtype, device=DEVICE, **options
    )
    # the interpreter stores bf16 by cutting bits off, which doubles the one rounding that the tolerance allows
    amplification = 2.0 if IS_INTERPRETED and dtype == torch.bfloat16 else 1.0
    case.assert_correct(case.run("triton"), case.expected(), amplification)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_every_dtype(dtype):
    check(dtype=dtype)


@pytest.mark.parametrize("popularity", POPULARITIES)
def test_each_token_gets_its_own_adapter(popularity):
    check(popularity, 37, hidden_size=160)


@pytest.mark.parametrize(
    ("hidden_size", "rank", "gate_size"), [(1000, 10, 10), (896, 16, 8), (48, 4, 1), (300, 64, 33)]
)
def test_widths_that_no_block_divides(hidden_size, rank, gate_size):
    check(hidden_size=hidden_size, rank=rank, gate_size=gate_size, has_residual=hidden_size != 896)


@pytest.mark.parametrize("flags", [0, 1, 2, 3, 6, 7, 15, 27, 31])
def test_combinations_of_flags(flags):
    check("distinct", 5, hidden_size=130, flags=[flags])


def test_an_offset_norm_loses_no_digits():
    """A mean far from zero: moments that were summed as raw squares would be off by orders of magnitude."""
    slots = popularity_slots("uniform", 9, NUM_SLOTS, seed=2)
    case = make_boundary_case(
        slots, num_adapter_slots=NUM_SLOTS, hidden_size=520, device=DEVICE, flags=[6]
    )
    case.residual.add_(200.0)
    hidden, state = case.run("triton")
    _, expected = case.expected()
    rows = torch.from_numpy(slots != -1)
    error = (state[: len(slots)][rows].double() - expected[: len(slots)][rows]).abs().max()
    assert error < 1e-3
    assert hidden.shape == case.hidden.shape
