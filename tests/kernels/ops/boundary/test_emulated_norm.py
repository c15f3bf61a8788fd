"""The CUDA kernels of `boundary_rms_norm_`, run on the CPU thread by thread, against the oracle."""

import numpy as np
import pytest

from emulated_boundary import (
    NUM_SLOTS,
    SIZES,
    TOKEN_SIZES,
    Cut,
    compile_emulator,
    compile_sabotaged,
    run_emulated_norm,
    run_emulated_with_norm,
)
from shadow_kernels.ops.boundary.reference import add_rms_norm_reference
from shadow_kernels.testing import (
    MIXED_FLAGS,
    PAPER_FLAGS,
    POPULARITIES,
    TOLERANCE,
    assert_close,
    assert_same_bits,
    make_boundary_norm_case,
    popularity_slots,
)

ONE_ROUNDING = 2e-3
"""Of a wide bf16 row: storing it alone is off by up to 1.9e-3, rounding before the weight, too, by 2.5e-3."""


def make_case(slots, **options):
    return make_boundary_norm_case(slots, num_adapter_slots=NUM_SLOTS, **SIZES | options)


def check(library, case, cut):
    return case.assert_correct(run_emulated_with_norm(library, case, cut))


@pytest.mark.parametrize(("hidden_size", "gate_size", "rank", "num_blocks"), TOKEN_SIZES)
@pytest.mark.parametrize("flags", [MIXED_FLAGS, [PAPER_FLAGS]], ids=["mixed", "paper"])
def test_the_token_kernel_ends_with_the_norm(
    library, hidden_size, gate_size, rank, num_blocks, flags
):
    slots = popularity_slots("uniform", 10, NUM_SLOTS, seed=1)
    case = make_case(slots, hidden_size=hidden_size, gate_size=gate_size, rank=rank, flags=flags)
    check(library, case, Cut(num_blocks, "token"))


@pytest.mark.parametrize("popularity", POPULARITIES)
def test_every_row_has_a_norm(library, popularity):
    case = make_case(popularity_slots(popularity, 20, NUM_SLOTS, seed=1), flags=MIXED_FLAGS)
    check(library, case, Cut(2, "token"))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("hidden_size", "num_octets", "num_warps"),
    [(512, 1, 2), (512, 2, 1), (328, 1, 2), (1000, 2, 2), (8, 1, 1), (1088, 1, 5)],
)
def test_the_norm_alone(library, hidden_size, num_octets, num_warps, dtype):
    slots = popularity_slots("base_mixed", 6, NUM_SLOTS, seed=1)
    case = make_case(slots, hidden_size=hidden_size, rank=4, dtype=dtype)
    results = run_emulated_norm(library, case, num_octets, num_warps)
    oracle = add_rms_norm_reference(
        case.boundary.hidden, case.boundary.residual, case.rms_weight, case.rms_eps
    )
    for name, actual, expected in zip(("norm", "sum"), results, oracle, strict=True):
        assert_close(actual, expected, name)


def test_the_norm_rounds_once(library):
    wide = make_case(popularity_slots("base_mixed", 12, NUM_SLOTS, seed=1), hidden_size=1088)
    assert check(library, wide, Cut(4, "token")) <= ONE_ROUNDING
    expected = wide.expected()[0]
    is_base = wide.boundary.token_slots < 0
    norm, _ = run_emulated_norm(library, wide, 1, 5)
    assert assert_close(norm[is_base], expected[is_base], "the norm") <= ONE_ROUNDING


@pytest.mark.parametrize(("hidden_size", "num_blocks"), [(512, 2), (328, 2), (2560, 8), (1600, 16)])
def test_a_base_row_has_the_same_bits_in_every_kernel_and_under_any_timing(
    library, hidden_size, num_blocks
):
    case = make_case(popularity_slots("base_mixed", 12, NUM_SLOTS, seed=2), hidden_size=hidden_size)
    is_base = case.boundary.token_slots < 0
    alone = run_emulated_norm(library, case, 2, 5)
    for seed in range(3):
        mixed = run_emulated_with_norm(library, case, Cut(num_blocks, "token", seed=seed))
        for name, first, second in zip(("norm", "sum"), mixed, alone, strict=False):
            assert_same_bits(first[is_base], second[is_base], f"a base row of {name}")


def test_the_norm_differs_from_the_base_s(library):
    """The oracle's own rows show what the tests above rest on: the correction is no rounding error."""
    case = make_case(popularity_slots("identical", 4, NUM_SLOTS, seed=1), flags=[PAPER_FLAGS])
    bare, _ = add_rms_norm_reference(
        case.boundary.hidden, case.boundary.residual, case.rms_weight, case.rms_eps
    )
    assert (case.expected()[0] - bare).abs().mean() > 0.1


TOKEN_SABOTAGE = {
    "nobody waits for the kernel in front": ("wait_for_previous_kernel();\n  release", "release"),
    "nobody waits for the squares": ("    wait_barrier(&barriers[2], 0);\n", ""),
    "rounded before the weight": (
        "{h[0] * factor * weight[0], h[1] * factor * weight[1]}",
        "{to_float(from_float<T>(h[0] * factor)) * weight[0],"
        " to_float(from_float<T>(h[1] * factor)) * weight[1]}",
    ),
    "a slice in another's place": (
        "squares + block * num_warps + warp",
        "squares + block * num_warps",
    ),
    "a block without squares": (
        "if (lane < p.num_blocks) send",
        "if (lane && lane < p.num_blocks) send",
    ),
    "the squares over other sums": (
        "squares = projected + p.num_blocks",
        "squares = projected + 0 * p.num_blocks",
    ),
    "the correction left out of the norm": (
        "hidden[i] += added, h[i] += added;",
        "hidden[i] += added;",
    ),
    "hidden in place of the sum": (
        "write_pair(residual_row(own_column), h);",
        "write_pair(residual_row(own_column), hidden);",
    ),
    "rows without adapter left out": (
        "if (!work.take_token() && !has_rms) {",
        "if (!work.take_token()) {",
    ),
    "the weight ignored": (
        "{h[0] * factor * weight[0], h[1] * factor * weight[1]}",
        "{h[0] * factor, h[1] * factor}",
    ),
    "two columns exchanged": (
        "{h[0] * factor * weight[0], h[1] * factor * weight[1]}",
        "{h[0] * factor * weight[1], h[1] * factor * weight[0]}",
    ),
}

NORM_SABOTAGE = {
    "nobody waits for the kernel in front": ("  wait_for_previous_kernel();\n", ""),
    "nobody waits for the slices": (
        "  __syncthreads();\n  const int num_slices",
        "  const int num_slices",
    ),
    "a slice's sum of four lanes": ("sum_neighbours<0, 3>(octet", "sum_neighbours<0, 2>(octet"),
    "a thread's first octet twice": ("hidden = hidden[octet]", "hidden = hidden[threadIdx.x]"),
    "eps ignored": (
        "static_cast<float>(hidden_size)), eps)",
        "static_cast<float>(hidden_size)), 0.0f)",
    ),
    "the weight ignored": ("* weights[i]", ""),
    "rounded before the weight": ("h[i] * factor", "to_float(from_float<T>(h[i] * factor))"),
    "the last slice dropped": ("lane < num_slices", "lane < num_slices - 1"),
    "every row the first": ("row = blockIdx.x", "row = 0"),
}


def token_failure(library):
    slots = popularity_slots("base_mixed", 16, NUM_SLOTS, seed=1)
    wide, narrow = make_case(slots), make_case(slots, hidden_size=328, gate_size=5, rank=9)
    for seed in range(8):
        assert check(library, wide, Cut(2, "token", seed=seed)) <= ONE_ROUNDING
        check(library, narrow, Cut(2, "token", seed=seed))


def norm_failure(library):
    case = make_case(np.full(5, -1, np.int32), hidden_size=1024)
    oracle = case.expected()
    for seed in range(8):
        for actual, expected in zip(
            run_emulated_norm(library, case, 2, 2, seed), oracle, strict=False
        ):
            assert assert_close(actual, expected, "a row") <= ONE_ROUNDING


@pytest.mark.slow
def test_sources_without_sabotage_pass_what_sabotage_fails(tmp_path):
    library = compile_emulator(tmp_path, only="token")
    token_failure(library)
    norm_failure(library)


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", TOKEN_SABOTAGE)
def test_sabotage_of_the_token_kernel_is_seen(tmp_path, sabotage):
    changed = compile_sabotaged(tmp_path, "token", "boundary_token.cuh", *TOKEN_SABOTAGE[sabotage])
    with pytest.raises(AssertionError):
        token_failure(changed)


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", NORM_SABOTAGE)
def test_sabotage_of_the_norm_kernel_is_seen(tmp_path, sabotage):
    changed = compile_sabotaged(tmp_path, "token", "rms_norm.cuh", *NORM_SABOTAGE[sabotage])
    with pytest.raises(AssertionError):
        norm_failure(changed)
