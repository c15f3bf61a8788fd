"""The CUDA kernels of `slot_linear`, run on the CPU thread by thread, against the oracle."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from emulated_slot_linear import compile_slot_linear, run_emulated
from emulator import sabotage_sources
from shadow_kernels.ops.slot_linear.cuda import CUTS, MAX_TOKENS, choose_cut
from shadow_kernels.testing import POPULARITIES, assert_same_bits, popularity_slots
from slot_linear_case import make_slot_linear_case

NUM_SLOTS = 5
DTYPES = [torch.bfloat16, torch.float16]
every_cut = pytest.mark.parametrize(
    "cut", CUTS, ids=lambda cut: f"{cut.num_groups}x{cut.num_octets}"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compile_slot_linear(tmp_path_factory.mktemp("emulated"))


def make_case(slots, num_inputs=328, num_outputs=70, **options):
    return make_slot_linear_case(slots, num_inputs, num_outputs, num_slots=NUM_SLOTS, **options)


def check(library, case, cut, **options):
    case.assert_correct(run_emulated(library, case, cut, **options))


@every_cut
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_every_cut_and_dtype(library, cut, dtype, has_bias):
    slots = popularity_slots("uniform", MAX_TOKENS, NUM_SLOTS, seed=1)
    check(library, make_case(slots, dtype=dtype, has_bias=has_bias), cut)


@every_cut
@pytest.mark.parametrize(
    ("num_inputs", "num_outputs"), [(8, 1), (24, 8), (264, 33), (1000, 3), (2080, 64)]
)
def test_sizes_that_no_block_divides(library, cut, num_inputs, num_outputs):
    slots = popularity_slots("uniform", 6, NUM_SLOTS, seed=1)
    check(library, make_case(slots, num_inputs, num_outputs), cut)


@every_cut
@pytest.mark.parametrize("num_tokens", [1, 2, 7, MAX_TOKENS])
@pytest.mark.parametrize("popularity", POPULARITIES)
def test_each_token_meets_its_own_weight(library, cut, num_tokens, popularity):
    slots = popularity_slots(popularity, num_tokens, NUM_SLOTS, seed=1)
    check(library, make_case(slots, 64, 33), cut)


@every_cut
@pytest.mark.parametrize("num_blocks", [1, 2, 7, 40])
def test_any_number_of_blocks_shares_the_work(library, cut, num_blocks):
    """Ranges begin and end in the middle of a tile, or are empty."""
    sizes = [(35, 648), (35, 100), (9, 648), (0, 648), (35, 0)]
    slots = np.array([4, 3, 2, 1, 0, 2, 0, -1], np.int32)
    case = make_case(slots, 648, sizes=sizes, num_chunks=2)
    check(library, case, cut, num_blocks=num_blocks)


@every_cut
@pytest.mark.parametrize("num_chunks", [1, 2])
def test_rows_beyond_the_extents_are_not_read(library, cut, num_chunks):
    rows, num_inputs = 70 // num_chunks, 328
    sizes = [(rows, num_inputs), (rows, 100), (9, num_inputs), (0, num_inputs), (rows, 0)]
    slots = np.array([4, 3, 2, 1, 0, 2, 1, -1], np.int32)
    check(library, make_case(slots, num_inputs, sizes=sizes, num_chunks=num_chunks), cut)


@every_cut
@pytest.mark.parametrize(("first_slot", "num_class_slots"), [(0, 2), (2, 3), (1, 1)])
def test_tokens_of_another_class_are_exact_zeros(library, cut, first_slot, num_class_slots):
    slots = np.array([0, 1, 2, 3, 4, -1, 1, 2], np.int32)
    case = make_case(slots, 64, 20, first_slot=first_slot, num_class_slots=num_class_slots)
    check(library, case, cut)


@pytest.mark.parametrize("num_outputs", [20, 1100])
def test_a_row_has_the_same_bits_alone_in_any_batch_and_under_any_timing(library, num_outputs):
    slots = np.array([2, 0, 2, 1, -1, 2, 0, 4], np.int32)
    whole, cut = make_case(slots, 1160, num_outputs), choose_cut(num_outputs)
    first = run_emulated(library, whole, cut)
    for seed in (1, 2):
        out = run_emulated(library, whole, cut, num_blocks=seed, seed=seed)
        assert_same_bits(out, first, "under another timing")
    kept = np.where(np.arange(MAX_TOKENS) == 5, slots, -1).astype(np.int32)
    assert_same_bits(run_emulated(library, whole.with_slots(kept), cut)[5], first[5], "alone")
    part = dataclasses.replace(whole, x=whole.x[3:6]).with_slots(slots[3:6].copy())
    assert_same_bits(run_emulated(library, part, cut), first[3:6], "among few")


SABOTAGE = {
    "a warp's sums are lost": ("warp < kWarps; ++warp) sum +=", "warp < kWarps - 1; ++warp) sum +="),
    "no barrier in front of the sums": ("    __syncthreads();\n    const Tile& tile", "    const Tile& tile"),
    "sums are overwritten while they are read": ("    __syncthreads();  // all have read", "    // all have read"),
    "no barrier in front of the tiles": ("  __syncthreads();\n}\n\n#ifndef", "}\n\n#ifndef"),
    "x is read before the kernel in front has ended": (
        "++stage, go_on()) copy_weights(stage);\n    wait_for_previous_kernel();\n    release_next_kernel();\n",
        "++stage, go_on()) {\n      copy_weights(stage);\n      copy_tokens(stage);\n    }\n"
        "    commit_copies();\n    wait_copies<0>();\n    const Range late = {};\n    wait_for_previous_kernel();\n"
        "    return compute(range), void(late);\n",
    ),
    "zeros come before the kernel in front has ended": (
        "  wait_for_previous_kernel();  // which may still read what lay here before\n", "",
    ),
    "another slot's weights": ("+ tile.slot * params_.weight_stride", "+ (tile.slot ? 0 : 1) * params_.weight_stride"),
    "the last inputs are dropped": ("(used_columns + kQuad - 1) / kQuad * kQuad", "used_columns / kQuad * kQuad"),
    "inputs beyond the adapter's": (
        "source_.inputs = tile.num_inputs - input", "source_.inputs = params_.num_inputs - input",
    ),
    "a step is read before it is there": ("wait_copies<kDepth - 2>();", "wait_copies<kDepth - 1>();"),
    "a step is overwritten before it is read": (
        "      copy_weights(free);\n", "      copy_weights(free == 0 ? kDepth - 1 : free - 1);\n",
    ),
    "rows beyond the extent": ("% params_.chunk_rows < tile.used_rows", "% params_.chunk_rows <= tile.used_rows"),
    "every output's bias is the first": ("params_.bias_stride + output]", "params_.bias_stride]"),
    "the last token is skipped": ("row < tile.num_tokens;", "row + 1 < tile.num_tokens;"),
    "other tokens keep what was there": ("if (0 <= slot && slot < p.num_class_slots) continue;", "continue;"),
    "sums go on into the next item": ("      own[0] = own[1] = 0.0f;\n", ""),
    "a block's last item is nobody's": (
        "C::kOutputs, last - first});", "C::kOutputs, last - first - (last > first + 1)});",
    ),
    "a range begins with its tile": ("first % tile_items * C::kOutputs,", "0,"),
    "an item without inputs is skipped": (
        "      store(range);\n", "      if (shared_.tiles[range.tile].num_inputs) store(range);\n",
    ),
}  # fmt: skip


def first_failure(library):
    """Run what every sabotage is seen by."""
    slots = np.array([0, 1, 2, 3, 4, 0, 2, -1], np.int32)
    sizes = [(35, 2400), (35, 100), (9, 2400), (0, 2400), (35, 40)]
    case = make_case(slots, 2400, sizes=sizes, num_chunks=2)
    short = make_case(slots[:5], 64, sizes=[(9, 64)], num_chunks=2)
    for cut, seed in itertools.product(CUTS, range(3)):
        check(library, case, cut, num_blocks=4, seed=seed)
        check(library, short, cut, num_blocks=1, seed=seed)


@pytest.mark.slow
def test_sources_without_sabotage_pass_what_sabotage_fails(library):
    first_failure(library)


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", SABOTAGE)
def test_sabotage_is_seen(tmp_path, sabotage):
    sources = sabotage_sources(tmp_path, "slot_linear.cuh", *SABOTAGE[sabotage])
    library = compile_slot_linear(tmp_path, sources)
    with pytest.raises(AssertionError):
        first_failure(library)
