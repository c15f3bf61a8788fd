"""The CUDA kernels of `dense_linear`, run on the CPU thread by thread, against the oracle."""

import pytest
import torch

from emulated_dense_linear import CUTS, Cut, compile_dense_linear, run_emulated
from emulator import sabotage_sources
from shadow_kernels.ops.dense_linear.reference import dense_linear_reference
from shadow_kernels.testing import assert_close, assert_same_bits

DTYPES = [torch.bfloat16, torch.float16]
MANY_INPUTS = 2184  # more than a ring holds, and a last step that is not full
every_cut = pytest.mark.parametrize("cut", CUTS, ids=lambda cut: "x".join(map(str, cut)))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compile_dense_linear(tmp_path_factory.mktemp("emulated"))


def make_case(num_tokens, num_outputs, num_inputs, dtype=torch.bfloat16, *, has_bias=False):
    """Return x, weight and bias; beside their rows lies NaN."""
    generator = torch.Generator().manual_seed(num_tokens)
    x = torch.full((num_tokens, num_inputs + 8), torch.nan, dtype=dtype)
    x[:, :num_inputs] = torch.randn(num_tokens, num_inputs, generator=generator).to(dtype)
    weight = torch.full((num_outputs + 64, num_inputs + 8), torch.nan, dtype=dtype)
    values = torch.randn(num_outputs, num_inputs, generator=generator) * num_inputs**-0.5
    weight[:num_outputs, :num_inputs] = values.to(dtype)
    bias = torch.randn(num_outputs, generator=generator).to(dtype) if has_bias else None
    return x[:, :num_inputs], weight[:num_outputs, :num_inputs], bias


def check(library, case, cut, **options):
    out = run_emulated(library, *case, cut, **options)
    assert_close(out, dense_linear_reference(*case), f"{cut}")
    return out


@every_cut
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_cut_and_dtype(library, cut, dtype):
    case = make_case(cut.num_tokens, 2 * cut.num_outputs, MANY_INPUTS, dtype, has_bias=True)
    check(library, case, cut)


@every_cut
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(8, 8), (160, 72), (96, 520)])
def test_sizes_that_no_block_divides(library, cut, num_outputs, num_inputs):
    check(library, make_case(max(1, cut.num_tokens - 3), num_outputs, num_inputs), cut)


@pytest.mark.parametrize("num_tokens", range(1, 9))
def test_any_number_of_tokens(library, num_tokens):
    check(library, make_case(num_tokens, 88, 264), Cut(8, 40, 2))


def test_a_row_has_the_same_bits_in_every_step_and_under_any_timing(library):
    x, weight, bias = make_case(40, 80, MANY_INPUTS)
    whole = check(library, (x, weight, bias), Cut(64, 40, 2))
    for seed in (1, 2):
        out = run_emulated(library, x, weight, bias, Cut(64, 40, 2), seed=seed)
        assert_same_bits(out, whole, "under another timing")
    for num_tokens, cut in ((1, Cut(8, 40, 2)), (8, Cut(8, 40, 2)), (30, Cut(32, 40, 2))):
        out = run_emulated(library, x[-num_tokens:], weight, bias, cut)
        assert_same_bits(out, whole[-num_tokens:], f"among {num_tokens}")


SABOTAGE = {
    "x is read before the kernel in front has ended": ("    wait_for_previous_kernel();\n", ""),
    "the last step is dropped": (
        "step < num_steps_; ++step) {\n      wait_barrier(barriers().filled",
        "step < num_steps_ - 1; ++step) {\n      wait_barrier(barriers().filled",
    ),
    "a step is overwritten before it is read": (
        "      wait_barrier(barriers().freed + step % C::kStages, (step / C::kStages - 1) & 1);\n", "",
    ),
    "a step is freed while it is read": ("      wait_products<1>();\n", "      wait_products<2>();\n"),
    "a step is multiplied before it is there": (
        "      wait_barrier(barriers().filled + step % C::kStages, step / C::kStages & 1);\n", "",
    ),
    "a step waits for one copy of two": ("(barrier, C::kStepBytes);", "(barrier, C::kWeightBytes);"),
    "three quarters of a step": ("part < 4; ++part", "part < 3; ++part"),
    "sums are stored while the ring is read": (
        "    sync_first_threads(kWarpgroup);  // nobody reads the ring any more\n", "",
    ),
    "sums are read before they are stored": (
        "    if constexpr (C::kSplit > 1) publish_stores();\n    sync_first_threads(kWarpgroup);\n", "",
    ),
    "sums are taken before the last products": ("    wait_products<0>();\n", ""),
    "another's barrier is used before it is made": ("    wait_for_cluster();  // all have made their barriers\n", ""),
    "a block ends while the others read from it": (
        "      arrive_at_cluster();\n      wait_for_cluster();\n    }\n  }\n\n private:", "    }\n  }\n\n private:",
    ),
    "nobody waits for what is handed over": ("    wait_barrier(&barriers().received, 0);\n", ""),
    "everybody's sums go to one place": ("(rank_ < to ? rank_ : rank_ - 1) * C::kOwnSums", "0"),
    "the own sums are somebody else's": ("sums() + rank_ * C::kOwnSums", "sums()"),
    "the last tokens are nobody's": ("i < C::kOwnTokens * kQuads;", "i < C::kOwnTokens * kQuads - kQuads;"),
    "rows beyond the step": ("token >= params_.num_tokens || ", ""),
    "outputs beyond the weight": (" || output >= params_.num_outputs", ""),
    "every output's bias is the first": ("(params_.bias)[output + k]", "(params_.bias)[k]"),
    "blocks share all inputs": ("first_step_(params.num_steps * rank_ / C::kSplit)", "first_step_(0)"),
    "clusters take the same outputs": ("static_cast<int>(blockIdx.x) / C::kSplit * C::kOutputs", "0"),
    "the second columns are the first": ("operand_of(weight + kFirst * kRowBytes, part)", "operand_of(weight, part)"),
    "outputs of two lanes are exchanged": ("i / 4 * 8 + lane % 4 * 2;", "i / 4 * 8 + (lane ^ 1) % 4 * 2;"),
    "products stop at the powers of two": ("if constexpr (kLeft > kColumns)", "if constexpr (kLeft > 2 * kColumns)"),
}  # fmt: skip


def first_failure(library):
    """Run what every sabotage is seen by."""
    for seed in range(3):
        for cut in (Cut(8, 40, 2), Cut(8, 88, 4), Cut(64, 152, 1)):
            num_tokens, num_outputs = cut.num_tokens - 1, 2 * cut.num_outputs - 8
            check(
                library,
                make_case(num_tokens, num_outputs, MANY_INPUTS, has_bias=True),
                cut,
                seed=seed,
            )
        check(library, make_case(8, 40, 200), Cut(8, 40, 2), seed=seed)


@pytest.mark.slow
def test_sources_without_sabotage_pass_what_sabotage_fails(library):
    first_failure(library)


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", SABOTAGE)
def test_sabotage_is_seen(tmp_path, sabotage):
    sources = sabotage_sources(tmp_path, "dense_linear.cuh", *SABOTAGE[sabotage])
    library = compile_dense_linear(tmp_path, sources)
    with pytest.raises(AssertionError):
        first_failure(library)
