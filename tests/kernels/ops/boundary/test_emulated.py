"""The CUDA cluster kernels of `boundary_`, run on the CPU thread by thread, against the oracle."""

import itertools
import shutil

import numpy as np
import pytest
import torch

from emulated_boundary import Cut, compile_emulator, run_emulated
from shadow_kernels.build import find_sources
from shadow_kernels.testing import (
    MIXED_FLAGS,
    POPULARITIES,
    TOLERANCE,
    assert_same_bits,
    make_boundary_case,
    popularity_slots,
)

NUM_SLOTS = 7
KERNELS = {"unit": True, "range": False}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compile_emulator(tmp_path_factory.mktemp("emulated"))


def make_case(slots, **options):
    options = {"hidden_size": 512, "rank": 16, "gate_size": 8, "dtype": torch.bfloat16, **options}
    return make_boundary_case(slots, num_adapter_slots=NUM_SLOTS, **options)


def check(library, case, cut):
    case.assert_correct(run_emulated(library, case, cut), case.expected())


@pytest.mark.parametrize("kernel", KERNELS)
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
    check(library, case, Cut(num_blocks, KERNELS[kernel], num_clusters=2))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("popularity", POPULARITIES)
def test_each_token_meets_its_own_adapter(library, kernel, popularity):
    case = make_case(popularity_slots(popularity, 35, NUM_SLOTS, seed=1), has_residual=False)
    check(library, case, Cut(2, KERNELS[kernel], num_clusters=3))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 15, 16, 17, 33])
def test_units_that_a_slot_fills_exactly_or_by_one_more(library, kernel, num_tokens):
    slots = np.repeat(np.array([3, 0], np.int32), num_tokens)
    check(library, make_case(slots), Cut(2, KERNELS[kernel], num_clusters=1))


def test_a_row_has_the_same_bits_alone_in_any_batch_and_under_any_timing(library):
    slots = popularity_slots("uniform", 40, NUM_SLOTS, seed=3)
    whole = make_case(slots)
    expected = run_emulated(library, whole, Cut(2, is_unit=False, num_clusters=2))
    for is_unit, seed in itertools.product((True, False), range(1, 4)):
        results = run_emulated(library, whole, Cut(2, is_unit, num_clusters=1 + seed, seed=seed))
        for result, first in zip(results, expected, strict=True):
            assert_same_bits(result, first, "a row")
    token = int(np.flatnonzero(slots == 0)[-1])
    alone = make_case(slots[token : token + 1])
    alone.hidden.copy_(whole.hidden[token : token + 1])
    alone.residual.copy_(whole.residual[token : token + 1])
    alone.state[:1].copy_(whole.state[token : token + 1])
    alone = alone.with_weights(**whole.weights._asdict())
    hidden, state = run_emulated(library, alone, Cut(2, is_unit=True))
    assert_same_bits(hidden, expected[0][token : token + 1], "a row of hidden")
    assert_same_bits(state[:1], expected[1][token : token + 1], "a row of state")


SABOTAGE = {
    "nobody waits for the first sums": ("work.wait_sums(3);\n  work.run_update", "work.run_update"),
    "nobody waits for the second sums": (
        "work.wait_sums(4);\n  work.run_inject",
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
        "units = in_place_of(R::first_unit_row(num_warps, p.num_blocks))",
        "units = in_place_of(R::kSumRows)",
    ),
    "no second halves": ("half == 0 || p.slot_starts", "half == 0 && p.slot_starts"),
    "warps add up before all have finished": (
        "__syncthreads();\n    if (kIsFused && threadIdx.x == 0) {\n      expect_bytes",
        "if (kIsFused && threadIdx.x == 0) {\n      expect_bytes",
    ),
    "the last slice dropped": ("w < num_parts; ++w", "w < num_parts - 1; ++w"),
}


def first_failure(library, case):
    """Run under several timings; raise what the first wrong one raises."""
    for seed in range(8):
        check(library, case, Cut(2, is_unit=True, seed=seed))


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", SABOTAGE)
def test_sabotage_of_the_unit_kernel_is_seen(tmp_path, sabotage):
    sources = tmp_path / "csrc"
    shutil.copytree(find_sources(), sources)
    header = sources / "include/shadow/boundary.cuh"
    right, wrong = SABOTAGE[sabotage]
    text = header.read_text()
    assert right in text
    header.write_text(text.replace(right, wrong))
    library = compile_emulator(tmp_path, sources, is_unit_only=True)
    case = make_case(popularity_slots("skewed", 40, NUM_SLOTS, seed=1))
    with pytest.raises(AssertionError):
        first_failure(library, case)
