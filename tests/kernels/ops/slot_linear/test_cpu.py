"""The vectorised `slot_linear` against the oracle, and the assert against sabotage."""

import numpy as np
import pytest
import torch

from shadow_kernels import StepSegments, slot_linear
from shadow_kernels.ops.slot_linear.reference import slot_linear_reference
from shadow_kernels.testing import POPULARITIES, TOLERANCE, assert_close, popularity_slots

NUM_SLOTS = 6


def make_inputs(
    slots, sizes=(40, 24), num_class_slots=NUM_SLOTS, first_slot=0, dtype=torch.float32
):
    """Return (x, weight, bias, segments); NaN in weights of slots without a token and in rows of other tokens."""
    generator = torch.Generator().manual_seed(0)
    num_inputs, num_outputs = sizes
    own = slots - first_slot
    x = torch.randn(len(slots), num_inputs, generator=generator).to(dtype)
    x[torch.from_numpy((own < 0) | (own >= num_class_slots))] = torch.nan
    storage = torch.full((num_class_slots, 3, num_outputs, num_inputs), torch.nan, dtype=dtype)
    bias = torch.full((num_class_slots, 2, num_outputs), torch.nan, dtype=dtype)
    for index in sorted({int(slot) for slot in own} & set(range(num_class_slots))):
        weight = torch.randn(num_outputs, num_inputs, generator=generator) * num_inputs**-0.5
        storage[index, 1] = weight.to(dtype)
        bias[index, 1] = torch.randn(num_outputs, generator=generator).to(dtype)
    segments = StepSegments(len(slots) + 3, NUM_SLOTS, "cpu")
    segments.fill(slots)
    return x, storage[:, 1], bias[:, 1], segments


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("popularity", POPULARITIES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_each_token_meets_its_own_weight(popularity, dtype, has_bias):
    slots = popularity_slots(popularity, 53, NUM_SLOTS, seed=1)
    x, weight, bias, segments = make_inputs(slots, dtype=dtype)
    own_bias = bias if has_bias else None
    out = slot_linear(x, weight, own_bias, segments.grouping, backend="cpu")
    assert out.dtype == dtype
    assert_close(out, slot_linear_reference(x, weight, own_bias, torch.from_numpy(slots), 0), "out")


@pytest.mark.parametrize(("first_slot", "num_class_slots"), [(0, 2), (2, 3), (5, 1)])
@pytest.mark.parametrize("num_tokens", [1, 17, 100])
def test_tokens_of_another_class_are_exact_zeros(first_slot, num_class_slots, num_tokens):
    slots = popularity_slots("uniform", num_tokens, NUM_SLOTS, seed=num_tokens)
    x, weight, bias, segments = make_inputs(slots, (40, 7), num_class_slots, first_slot)
    out = slot_linear(x, weight, bias, segments.grouping, first_slot, backend="cpu")
    own = (slots >= first_slot) & (slots < first_slot + num_class_slots)
    assert torch.equal(out[torch.from_numpy(~own)], torch.zeros(int((~own).sum()), 7))
    assert_close(
        out, slot_linear_reference(x, weight, bias, torch.from_numpy(slots), first_slot), "out"
    )


@pytest.mark.parametrize("num_chunks", [1, 2])
@pytest.mark.parametrize("has_bias", [True, False])
def test_what_lies_beyond_the_extents_is_not_read(num_chunks, has_bias):
    slots = popularity_slots("uniform", 60, NUM_SLOTS, seed=4)
    x, weight, bias, segments = make_inputs(slots)
    own_bias = bias if has_bias else None
    rows, columns = weight.shape[1] // num_chunks, weight.shape[2]
    sizes = [(rows, columns), (rows, 7), (5, columns), (3, 2), (0, columns), (rows, 0)]
    storage = torch.zeros(NUM_SLOTS, 3, 2, dtype=torch.int32)
    storage[:, 1] = torch.tensor(sizes, dtype=torch.int32)
    poison(weight, sizes, num_chunks)
    options = {"extents": storage[:, 1], "num_chunks": num_chunks}
    out = slot_linear(x, weight, own_bias, segments.grouping, backend="cpu", **options)
    expected = slot_linear_reference(
        x, weight, own_bias, torch.from_numpy(slots), 0, storage[:, 1], num_chunks
    )
    assert torch.isfinite(expected).all()
    assert_close(out, expected, "out")


def poison(weight, sizes, num_chunks):
    """Write NaN beyond each slot's rows of a chunk and columns."""
    for slot, (num_rows, num_columns) in enumerate(sizes):
        chunks = weight[slot].view(num_chunks, -1, weight.shape[2])
        chunks[:, num_rows:], chunks[..., num_columns:] = torch.nan, torch.nan


def _without_last(x):
    return torch.cat([x[:, :-1], torch.zeros_like(x[:, :1])], 1)


def _wrong_token(slots):
    wrong = slots.copy()
    wrong[-1] = (wrong[-1] + 1) % NUM_SLOTS
    return wrong


SABOTAGE = {
    "drop the last input": lambda x, w, b, s: (_without_last(x), w, b, s),
    "swap two slots": lambda x, w, b, s: (x, w[[1, 0, *range(2, NUM_SLOTS)]], b, s),
    "no bias": lambda x, w, b, s: (x, w, None, s),
    "skip the last token": lambda x, w, b, s: (x, w, b, np.append(s[:-1], np.int32(-1))),
    "last token in a wrong slot": lambda x, w, b, s: (x, w, b, _wrong_token(s)),
}  # fmt: skip


@pytest.mark.parametrize("sabotage", SABOTAGE)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_the_assert_sees_sabotage(sabotage, dtype):
    slots = popularity_slots("distinct", 600, NUM_SLOTS, seed=0)
    x, weight, bias, segments = make_inputs(slots, (400, 24), dtype=dtype)
    expected = slot_linear_reference(x, weight, bias, torch.from_numpy(slots), 0)
    assert_close(slot_linear(x, weight, bias, segments.grouping, backend="cpu"), expected, "out")
    x, weight, bias, slots = SABOTAGE[sabotage](x, weight, bias, slots)
    segments.fill(slots)
    with pytest.raises(AssertionError):
        assert_close(
            slot_linear(x, weight, bias, segments.grouping, backend="cpu"), expected, "out"
        )
