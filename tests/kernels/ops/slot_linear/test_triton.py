"""The Triton `slot_linear` against the oracle: on a GPU, or anywhere under TRITON_INTERPRET=1."""

import os

import numpy as np
import pytest
import torch

from shadow_kernels import StepSegments, slot_linear
from shadow_kernels.ops.slot_linear.config import SlotLinearConfig
from shadow_kernels.ops.slot_linear.reference import slot_linear_reference
from shadow_kernels.testing import POPULARITIES, TOLERANCE, assert_close, popularity_slots

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory")]
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
NUM_SLOTS = 5
# the interpreter multiplies bf16 by its bits; fp16 takes the same path through the kernel
TALL = SlotLinearConfig(block_m=64, block_n=32, block_k=64, num_warps=4, num_stages=2)
DTYPES = [dtype for dtype in TOLERANCE if dtype != torch.bfloat16 or not IS_INTERPRETED]


def check(
    slots,
    sizes,
    *,
    num_class_slots=NUM_SLOTS,
    first_slot=0,
    dtype=torch.float32,
    has_bias=True,
    config=None,
) -> None:
    torch.manual_seed(0)
    segments = StepSegments(len(slots) + 1, NUM_SLOTS, DEVICE)
    segments.fill(slots)
    num_inputs, num_outputs = sizes
    own = torch.from_numpy(slots - first_slot)
    x = torch.randn(len(slots), num_inputs).to(dtype)
    x[(own < 0) | (own >= num_class_slots)] = torch.nan
    storage = torch.full((num_class_slots, 2, num_outputs, num_inputs), torch.nan, dtype=dtype)
    used = sorted(set(own.tolist()) & set(range(num_class_slots)))
    storage[used, 1] = (torch.randn(len(used), num_outputs, num_inputs) * num_inputs**-0.5).to(
        dtype
    )
    bias = torch.randn(num_class_slots, num_outputs).to(dtype).to(DEVICE) if has_bias else None
    x, weight = x.to(DEVICE), storage.to(DEVICE)[:, 1]
    if config is None:
        out = slot_linear(x, weight, bias, segments.grouping, first_slot, backend="triton")
    else:
        from shadow_kernels.ops.slot_linear.triton import launch

        out = launch(x, weight, bias, None, 1, segments.grouping, first_slot, config)
    expected = slot_linear_reference(x, weight, bias, torch.from_numpy(slots), first_slot)
    assert_close(out, expected, "out")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_every_dtype(dtype, has_bias):
    check(
        popularity_slots("uniform", 40, NUM_SLOTS, seed=1),
        (100, 70),
        dtype=dtype,
        has_bias=has_bias,
    )


@pytest.mark.parametrize("config", [None, TALL], ids=["chosen", "tall"])
@pytest.mark.parametrize("num_chunks", [1, 2])
@pytest.mark.parametrize("has_bias", [True, False])
def test_rows_beyond_the_extents_are_not_read(num_chunks, has_bias, config):
    """Nor columns beyond them but those of a block that has others; they hold zeros."""
    slots = popularity_slots("uniform", 60, NUM_SLOTS, seed=4)
    num_outputs, num_inputs = 70, 700
    rows = num_outputs // num_chunks
    sizes = [(rows, num_inputs), (rows, 100), (9, num_inputs), (0, num_inputs), (rows, 0)]
    extents = torch.zeros(NUM_SLOTS, 4, 2, dtype=torch.int32)
    extents[:, 1] = torch.tensor(sizes, dtype=torch.int32)
    extents = extents.to(DEVICE)[:, 1]
    torch.manual_seed(0)
    segments = StepSegments(len(slots), NUM_SLOTS, DEVICE)
    segments.fill(slots)
    x = torch.randn(len(slots), num_inputs, device=DEVICE)
    weight = torch.randn(NUM_SLOTS, num_outputs, num_inputs, device=DEVICE) * num_inputs**-0.5
    for slot, (num_rows, num_columns) in enumerate(sizes):
        chunks = weight[slot].view(num_chunks, -1, num_inputs)
        chunks[..., num_columns:] = 0.0
        chunks[..., -(-num_columns // 256) * 256 :] = torch.nan
        chunks[:, num_rows:] = torch.nan
    bias = torch.randn(NUM_SLOTS, num_outputs, device=DEVICE) if has_bias else None
    if config is None:
        out = slot_linear(
            x, weight, bias, segments.grouping, backend="triton",
            extents=extents, num_chunks=num_chunks,
        )  # fmt: skip
    else:
        from shadow_kernels.ops.slot_linear.triton import launch

        out = launch(x, weight, bias, extents, num_chunks, segments.grouping, 0, config)
    expected = slot_linear_reference(
        x, weight, bias, torch.from_numpy(slots), 0, extents, num_chunks
    )
    assert torch.isfinite(expected).all()
    assert_close(out, expected, "out")


@pytest.mark.parametrize("popularity", POPULARITIES)
def test_each_token_meets_its_own_weight(popularity):
    check(popularity_slots(popularity, 70, NUM_SLOTS, seed=1), (64, 33))


@pytest.mark.parametrize(("first_slot", "num_class_slots"), [(0, 2), (2, 3), (1, 1)])
def test_tokens_of_another_class_are_exact_zeros(first_slot, num_class_slots):
    slots = popularity_slots("uniform", 40, NUM_SLOTS, seed=1)
    check(slots, (50, 20), num_class_slots=num_class_slots, first_slot=first_slot)


@pytest.mark.parametrize("sizes", [(1, 1), (1000, 3), (3, 200), (129, 65)])
def test_sizes_that_no_block_divides(sizes):
    check(popularity_slots("uniform", 19, NUM_SLOTS, seed=1), sizes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("popularity", POPULARITIES)
def test_blocks_of_several_tiles(popularity, dtype):
    slots = popularity_slots(popularity, 330, NUM_SLOTS, seed=1)
    check(slots, (70, 40), dtype=dtype, config=TALL)


def test_blocks_of_several_tiles_stay_within_a_class():
    slots = popularity_slots("uniform", 500, NUM_SLOTS, seed=2)
    slots[100:180] = -1
    check(slots, (70, 40), num_class_slots=2, first_slot=2, config=TALL)


@pytest.mark.parametrize("num_tokens", [15, 16, 17, 63, 64, 65, 128])
def test_blocks_that_a_slot_fills_exactly_or_by_one_more(num_tokens):
    slots = np.repeat(np.array([3, 0, 4], np.int32), num_tokens)
    check(slots, (16, 33), config=TALL)
