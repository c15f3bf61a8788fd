"""The CUDA kernels of `boundary_`, run on the CPU thread by thread, against the oracle."""

import itertools

import numpy as np
import pytest
import torch

from emulated_boundary import (
    NUM_SLOTS,
    SIZES,
    TOKEN_SIZES,
    Cut,
    compile_emulator,
    compile_sabotaged,
    run_emulated,
)
from shadow_kernels.segments import max_tiles
from shadow_kernels.testing import (
    MIXED_FLAGS,
    PAPER_FLAGS,
    POPULARITIES,
    TOLERANCE,
    assert_same_bits,
    make_boundary_case,
    popularity_slots,
)

TILE_KERNELS = ("range", "unit")
KERNELS = (*TILE_KERNELS, "token", "parts", "tile")


def make_case(slots, **options):
    return make_boundary_case(slots, num_adapter_slots=NUM_SLOTS, **SIZES | options)


def check(library, case, cut):
    case.assert_correct(run_emulated(library, case, cut), case.expected())


@pytest.mark.parametrize(("hidden_size", "gate_size", "rank", "num_blocks"), TOKEN_SIZES)
@pytest.mark.parametrize("flags", [MIXED_FLAGS, [PAPER_FLAGS]], ids=["mixed", "paper"])
def test_the_token_kernel_takes_every_size(
    library, hidden_size, gate_size, rank, num_blocks, flags
):
    slots = popularity_slots("uniform", 10, NUM_SLOTS, seed=1)
    case = make_case(slots, hidden_size=hidden_size, gate_size=gate_size, rank=rank, flags=flags)
    check(library, case, Cut(num_blocks, "token"))


@pytest.mark.parametrize("kernel", [*TILE_KERNELS, "parts", "tile"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("hidden_size", "gate_size", "rank", "num_blocks"),
    [(512, 8, 16, 2), (328, 10, 9, 2), (1024, 3, 16, 4), (200, 8, 1, 1)],
)
def test_every_dtype_and_size(library, kernel, dtype, hidden_size, gate_size, rank, num_blocks):
    slots = popularity_slots("uniform", 10, NUM_SLOTS, seed=1)
    case = make_case(
        slots, hidden_size=hidden_size, gate_size=gate_size, rank=rank, dtype=dtype, flags=MIXED_FLAGS
    )  # fmt: skip
    check(library, case, Cut(num_blocks, kernel, num_clusters=2))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("hidden_size", [1, 48, 130, 1001])
def test_the_separate_kernels_take_any_row(library, hidden_size, dtype):
    slots = popularity_slots("uniform", 21, NUM_SLOTS, seed=1)
    case = make_case(
        slots, hidden_size=hidden_size, gate_size=10, rank=9, dtype=dtype, flags=MIXED_FLAGS,
        has_residual=hidden_size != 130,
    )  # fmt: skip
    check(library, case, Cut(0, "parts"))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("popularity", POPULARITIES)
def test_each_token_meets_its_own_adapter(library, kernel, popularity):
    case = make_case(popularity_slots(popularity, 35, NUM_SLOTS, seed=1), has_residual=False)
    check(library, case, Cut(2, kernel, num_clusters=3))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_block_without_columns(library, kernel):
    slots = popularity_slots("uniform", 10, NUM_SLOTS, seed=1)
    check(library, make_case(slots, hidden_size=64, rank=4, flags=MIXED_FLAGS), Cut(2, kernel))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("num_slots", [32, 33, 70])
def test_more_slots_than_lanes(library, kernel, num_slots):
    slots = np.array([0, num_slots - 1, 31, num_slots - 1, 5, -1, 31] * 3, np.int32)
    case = make_boundary_case(
        slots, num_adapter_slots=num_slots, hidden_size=136, dtype=torch.bfloat16, flags=MIXED_FLAGS
    )
    check(library, case, Cut(2, kernel, num_clusters=2))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 15, 16, 17, 33])
def test_units_that_a_slot_fills_exactly_or_by_one_more(library, kernel, num_tokens):
    slots = np.repeat(np.array([3, 0], np.int32), num_tokens)
    check(library, make_case(slots), Cut(2, kernel, num_clusters=1))


@pytest.mark.parametrize(
    "others", [TILE_KERNELS, ("token",), ("tile",)], ids=["units", "token", "tile"]
)
def test_a_row_has_the_same_bits_alone_in_any_batch_and_under_any_timing(library, others):
    slots = popularity_slots("uniform", 40, NUM_SLOTS, seed=3)
    whole = make_case(slots)
    expected = run_emulated(library, whole, Cut(2, others[0], num_clusters=2))
    for kernel, seed in itertools.product(others, range(1, 4)):
        results = run_emulated(library, whole, Cut(2, kernel, num_clusters=1 + seed, seed=seed))
        for result, first in zip(results, expected, strict=True):
            assert_same_bits(result, first, "a row")
    token = int(np.flatnonzero(slots == 0)[-1])
    alone = make_case(slots[token : token + 1])
    alone.hidden.copy_(whole.hidden[token : token + 1])
    alone.residual.copy_(whole.residual[token : token + 1])
    alone.state[:1].copy_(whole.state[token : token + 1])
    alone = alone.with_weights(**whole.weights._asdict())
    hidden, state = run_emulated(library, alone, Cut(2, others[-1]))
    assert_same_bits(hidden, expected[0][token : token + 1], "a row of hidden")
    assert_same_bits(state[:1], expected[1][token : token + 1], "a row of state")


@pytest.mark.parametrize("kept_steps", [0, 1, 2, 4])
@pytest.mark.parametrize("flags", [MIXED_FLAGS, [PAPER_FLAGS]], ids=["mixed", "paper"])
def test_the_tile_kernel_keeps_what_fits(library, kept_steps, flags):
    """1,600 columns are more than three steps of 16 warps, with some warps left over in the last."""
    slots = popularity_slots("skewed", 45, NUM_SLOTS, seed=1)
    case = make_case(slots, hidden_size=1600, flags=flags)
    check(library, case, Cut(1, "tile", kept_steps=kept_steps))


def test_a_cluster_for_every_tile_that_a_step_can_have(library):
    """What the device is given between the unit kernel's end and more tiles than run at once."""
    slots = popularity_slots("uniform", 75, NUM_SLOTS, seed=1)
    case = make_case(slots, flags=MIXED_FLAGS)
    num_tiles = max_tiles(len(case.hidden), NUM_SLOTS)
    assert int(case.segments.host_counts[1]) < num_tiles
    check(library, case, Cut(2, "range", num_clusters=num_tiles))


@pytest.mark.parametrize("num_clusters", [5, 7, 11])
def test_ranges_that_begin_in_the_middle_of_a_tile(library, num_clusters):
    case = make_case(popularity_slots("skewed", 150, NUM_SLOTS, seed=1), flags=MIXED_FLAGS)
    check(library, case, Cut(2, "range", num_clusters=num_clusters))


SABOTAGE = {
    "nobody waits for the first sums": ("work.wait_sums(0);\n  work.run_update", "work.run_update"),
    "nobody waits for the second sums": (
        "work.wait_sums(1);\n  work.run_inject",
        "work.run_inject",
    ),
    "nobody waits for weights": ("wait_barrier(&barriers[part], parity)", "(void)part"),
    "blocks start before the others are ready": (
        "wait_for_cluster();  // all blocks have started, their barriers are ready\n  work.sums_parity",
        "work.sums_parity",
    ),
    "a warp's sums in the next warp's columns": (
        "of_warp * R::kRowFloats",
        "(of_warp ^ 1) * R::kRowFloats",
    ),
    "received sums over the warps' own": (
        "in_place_of(R::kSumRows)",
        "in_place_of(R::kSumRows - 3)",
    ),
    "the inner values over the received sums": (
        "units = in_place_of(R::first_unit_row(p.num_blocks))",
        "units = reduced",
    ),
    "no second halves": ("half != 0 && index >= end", "half != 0"),
    "the first tile's second half left out": (
        "number = cluster - used;",
        "number = cluster - used + 1;",
    ),
    "warps add up before all have finished": (
        "__syncthreads();\n    if (kIsFused && threadIdx.x == 0) expect_bytes",
        "if (kIsFused && threadIdx.x == 0) expect_bytes",
    ),
    "the last slice dropped": ("w < num_parts; ++w", "w < num_parts - 1; ++w"),
    "the large parts dropped": ("values[tile][0] + values[tile][2]", "values[tile][2]"),
    "what the norm adds, of half the gates": (
        "store_pair(item + 8, affine",
        "store_pair(item, affine",
    ),
    "a lane's weights not waited for": (
        "init_barrier(&barriers[0], 32 * kInItems)",
        "init_barrier(&barriers[0], 32 * kInItems - 1)",
    ),
    "an arrival before its last copies": (
        "fetch_vectors(number, num_columns);\n      arrive_with_chunks(&barriers[item.part]);",
        "arrive_with_chunks(&barriers[item.part]);\n      fetch_vectors(number, num_columns);",
    ),
    "a row more than an adapter has": (
        "if (r >= item.count) continue;",
        "if (r > item.count) continue;",
    ),
    "the first clusters with the others' units": (
        "place < 0 ? place + p.num_clusters",
        "place < 0 ? place + kPiledClusters",
    ),
}


RANGE_SABOTAGE = {
    "a slot's weights under the slot before": (
        "if (is_prepared) {\n      __syncthreads();",
        "if (is_prepared) {",
    ),
    "the tokens of the unit before": ("now = next, next =", "next ="),
    "residual and state of the unit before": (
        "work.load_rest(work.pick_token(index + kUnitTokens, end, of_row));",
        "",
    ),
    "the norm's shift of the slot before": (
        "if (!kIsRange || is_fresh)",
        "if (first_index < 8)",
    ),
    "a range's first half twice": ("kUnitTokens * (unit % 2)", "0"),
    "nobody waits for the first sums": (
        "work.wait_sums(0);\n      work.run_update",
        "work.run_update",
    ),
    "nobody waits for the second sums": (
        "work.wait_sums(1);\n      work.run_inject",
        "work.run_inject",
    ),
    "rows read where they were not put": ("kept(slice + spread(row)", "kept(slice + row"),
    "padding cleared where it is not": ("r / 8 * 8 + spread_back(r % 8)", "r"),
}


PARTS_SABOTAGE = {
    "vectors left out": ("        copy_row(place, source);", ""),
    "first halves only": ("half < 2 && work.take_half", "half < 1 && work.take_half"),
    "both halves in one scratch": (
        "(2 * static_cast<int64_t>(tile) + half)",
        "(2 * static_cast<int64_t>(tile))",
    ),
    "the gate not scaled": ("unit < S::kGates ? u : kOfExponent * u", "u"),
}


TOKEN_SABOTAGE = {
    "nobody waits for the first sums": ("wait_barrier(&work.barriers[0], 0);", ""),
    "nobody waits for the second sums": ("wait_barrier(&work.barriers[1], 0);", ""),
    "blocks start before the others are ready": (
        "wait_for_cluster();  // all blocks have started, their barriers are ready",
        "",
    ),
    "warps add up before all have finished": ("= {};\n    __syncthreads();", "= {};"),
    "the last slice dropped": ("w >= num_warps ||", "w >= num_warps - 1 ||"),
    "the last block dropped": ("if (b < p.num_blocks) total", "if (b < p.num_blocks - 1) total"),
    "the large parts dropped": ("contract(down, parts[0], parts[1]", "contract(down, 0, parts[1]"),
    "the upper octets dropped": ("row / 4 == part", "row / 4 == part && !part"),
    "a half's useless results": ("sums[half][0] + sums[half][3]", "sums[half][1] + sums[half][2]"),
    "two branches exchanged": ("row % 2 * kTokenGates", "(1 - row % 2) * kTokenGates"),
    "two columns exchanged": ("first, second, 0x5410", "first, second, 0x7632"),
    "a neighbour's columns": ("4 * (row / 4) + row % 2", "4 * (row / 4) + (row + 1) % 2"),
    "another token's slot": ("p.adapter_slots[token]", "p.adapter_slots[token ? token - 1 : 0]"),
    "alpha ignored": ("total *= scale;", ""),
}


TILE_SABOTAGE = {
    "the first sums added before all warps have them": (
        "__syncthreads();\n    if (has_update) find_units();",
        "if (has_update) find_units();",
    ),
    "the second sums added before all warps have them": (
        "__syncthreads();\n    find_projection();",
        "find_projection();",
    ),
    "bottlenecks used before all are there": (
        "kOfExponent * u;\n    }\n    __syncthreads();",
        "kOfExponent * u;\n    }",
    ),
    "projections used before all are there": (
        "scale * sum_warps(i);\n    }\n    __syncthreads();",
        "scale * sum_warps(i);\n    }",
    ),
    "the last warp dropped": ("w < kWarps; ++w) total", "w < kWarps - 1; ++w) total"),
    "the large parts dropped": ("values[tile][0] + values[tile][2]", "values[tile][2]"),
    "what the norm adds, of half the gates": (
        "store_pair(item + 8, affine",
        "store_pair(item, affine",
    ),
    "alpha ignored": ("scale * sum_warps(i)", "sum_warps(i)"),
    "the other unit's tokens": ("tile.y + kUnitTokens * unit + row", "tile.y + row"),
    "hidden kept over the other unit's": ("* kTileUnits + unit)", "* kTileUnits)"),
    "hidden of a step that was not kept": (
        "return is_kept(first) ? kept_hidden",
        "return true ? kept_hidden",
    ),
    "every other step of the update left out": (
        "update(other, down, places, kStep, first - kStep, sums);",
        "",
    ),
    "the last step's rows of down in all": (
        "load(down_rows, places, ahead - kStep, first - kStep);",
        "",
    ),
    "places that stay": ("places.move(-2 * kStep);", ""),
    "a token's rows beyond the tile": ("is_inside ? p.hidden_size : 0", "p.hidden_size"),
}


def first_failure(library, kernel):
    """Run cases, one with padding, under several timings; raise what the first wrong one raises."""
    # A tile's block has 512 threads here, and a long row takes it several steps.
    sizes, num_tokens, num_seeds = ((1088, 328), 24, 3) if kernel == "tile" else ((512, 328), 40, 8)
    slots = popularity_slots("skewed", num_tokens, NUM_SLOTS, seed=1)
    cases = [
        make_case(slots, hidden_size=sizes[0]),
        make_case(slots, hidden_size=sizes[1], gate_size=5, rank=9),
    ]
    for seed, case in itertools.product(range(num_seeds), cases):
        check(library, case, Cut(2, kernel, num_clusters=1 + seed, seed=seed))


def is_seen(tmp_path, kernel, header, right, wrong):
    """Compile the sources with one place changed and expect a failure."""
    library = compile_sabotaged(tmp_path, kernel, header, right, wrong)
    with pytest.raises(AssertionError):
        first_failure(library, kernel)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_sources_without_sabotage_pass_what_sabotage_fails(tmp_path, kernel):
    first_failure(compile_emulator(tmp_path, only=kernel), kernel)


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", SABOTAGE)
def test_sabotage_of_the_unit_kernel_is_seen(tmp_path, sabotage):
    is_seen(tmp_path, "unit", "boundary.cuh", *SABOTAGE[sabotage])


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", RANGE_SABOTAGE)
def test_sabotage_of_the_range_kernel_is_seen(tmp_path, sabotage):
    is_seen(tmp_path, "range", "boundary.cuh", *RANGE_SABOTAGE[sabotage])


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", TOKEN_SABOTAGE)
def test_sabotage_of_the_token_kernel_is_seen(tmp_path, sabotage):
    is_seen(tmp_path, "token", "boundary_token.cuh", *TOKEN_SABOTAGE[sabotage])


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", TILE_SABOTAGE)
def test_sabotage_of_the_tile_kernel_is_seen(tmp_path, sabotage):
    is_seen(tmp_path, "tile", "boundary_tile.cuh", *TILE_SABOTAGE[sabotage])


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", PARTS_SABOTAGE)
def test_sabotage_of_the_separate_kernels_is_seen(tmp_path, sabotage):
    is_seen(tmp_path, "parts", "boundary.cuh", *PARTS_SABOTAGE[sabotage])
