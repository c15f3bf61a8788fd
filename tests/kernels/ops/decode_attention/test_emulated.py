"""The CUDA kernels of `decode_attention`, run on the CPU thread by thread, against the oracle."""

import pytest
import torch

from emulated_decode_attention import LEAST_PIECE, compile_decode_attention, run_emulated
from emulator import sabotage_sources
from shadow_kernels.testing import assert_close, assert_same_bits
from shadow_kernels.testing_attention import Sizes, make_decode_case

DTYPES = [torch.bfloat16, torch.float16]
SMALL = Sizes(4, 2, 64)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compile_decode_attention(tmp_path_factory.mktemp("emulated"))


def check(library, case, spare_pieces=3, **options):
    out = run_emulated(library, case, spare_pieces, **options)
    assert_close(out, case.expected().flatten(1), "out")
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_size", [64, 128])
@pytest.mark.parametrize("group_size", [1, 3, 4, 8])
def test_every_kernel_and_group(library, group_size, head_size, dtype):
    sizes = Sizes(group_size, 1, head_size)
    check(library, make_decode_case([1, 17, LEAST_PIECE, 150], sizes, dtype=dtype))


@pytest.mark.parametrize("heads_outside", [False, True])
@pytest.mark.parametrize("page_size", [16, 64])
def test_layouts_of_the_cache(library, page_size, heads_outside):
    sizes = Sizes(4, 2, 64, page_size)
    check(library, make_decode_case([30, 129], sizes, heads_outside=heads_outside))


def test_tiles_that_are_not_full(library):
    check(library, make_decode_case([1, 2, 7, 8, 9, 15, 16, 31, 63, 65], SMALL), 1)


@pytest.mark.parametrize("spare_pieces", [1, 3, 13])
def test_cuts(library, spare_pieces):
    """Pieces are as long as they must be: the fewer, the longer."""
    check(library, make_decode_case([300, 96, 97, 0, 160, 161], SMALL), spare_pieces)


def test_more_sequences_than_threads(library):
    lengths = [number % 5 for number in range(130)]
    lengths[3], lengths[129] = 140, 200
    check(library, make_decode_case(lengths, Sizes(1, 1, 64)), 4)


def test_more_pages_than_a_warp_keeps_at_once(library):
    """A lane a page, 32 tiles of four warps: 2,048 tokens."""
    check(library, make_decode_case([2200], Sizes(1, 1, 64)), 1)


def test_sequences_without_tokens_are_zeros(library):
    out = check(library, make_decode_case([0, 100, 0], SMALL))
    assert not out[[0, 2]].any()


@pytest.mark.parametrize("sharpness", [0.0, 20.0, -20.0])
def test_flat_and_sharp_scores(library, sharpness):
    check(library, make_decode_case([100, 33], SMALL, sharpness=sharpness, seed=5))


def test_bits_do_not_depend_on_timing_nor_short_ones_on_others(library):
    case = make_decode_case([200, 40, 150], SMALL)
    whole = check(library, case, 6)
    for seed in (1, 2, 3):
        out = run_emulated(library, case, 6, seed=seed)
        assert_same_bits(out, whole, "under another timing")
    assert_same_bits(run_emulated(library, case.row(1), 3), whole[1:2], "alone")


SABOTAGE = {
    "the query is read before the kernel in front has ended": (
        "  wait_for_previous_kernel();\n  release", "  release",
    ),
    "every sequence has one piece": ("count += count_further(p.lengths[i], piece_tokens)", "count += 0"),
    "a piece ends where its sequence does": ("min(begin + piece_tokens, length)", "length"),
    "all pieces begin with the first token": ("begin = number * piece_tokens;", "begin = 0;"),
    "only the first warps have lengths": (
        "for (int w = 0; w < kWarps; ++w) sum += shared.lengths[w];", "sum = shared.lengths[0];",
    ),
    "only a warp's own pieces count": (
        "    for (int w = 0; w < kWarps; ++w) sum += w < warp ? shared.counts[w] : 0;\n", "    {}\n",
    ),
    "the scan takes itself along": ("    sum -= value;\n", ""),
    "the piece is read before it is found": (
        "      before += further;\n    }\n    __syncthreads();\n", "      before += further;\n    }\n",
    ),
    "pages are read once": ("      if ((tile + 1) % 32 == 0) load_pages(tile + 1);\n", ""),
    "the page's place is the sequence's": ("token & ((1 << p.page_shift) - 1)", "token"),
    "every head reads the first one's keys": (" + head * p.head_stride;", ";"),
    "queries of other heads": ("(head * p.group_size + row) * kHeadSize + 8 * quad", "row * kHeadSize + 8 * quad"),
    "values behind the end": ("64 * half, token < num_tokens)", "64 * half, true)"),
    "scores behind the end count": ("is_token ? products[i] * p.scale_log2 : -INFINITY", "products[i] * p.scale_log2"),
    "scores are not scaled": ("products[i] * p.scale_log2", "products[i]"),
    "the highest of a lane's scores": (
        "    most = fmaxf(most, __shfl_xor_sync(kEveryLane, most, 1));\n", "",
    ),
    "sums stay as they were": ("sums[half][t][0] *= first, ", ""),
    "the total stays as it was": ("highest = most, total *= kept;", "highest = most;"),
    "the other head's factor": ("__shfl_sync(kEveryLane, kept, 8 * quad + 4)", "first"),
    "octets of the same column": ("of_octet % 2 ? 0x7632 : 0x5410", "0x5410"),
    "tokens in another order": ("n / 2 * 8 + 2 * quad + n % 2", "n / 2 * 8 + quad + n % 2 * 4"),
    "the next tile's keys come twice": ("      load_keys(offset, next);\n", ""),
    "the next tile's values come twice": ("      load_values(offset, next);\n", ""),
    "totals of one lane of four": ("    total += __shfl_xor_sync(kEveryLane, total, 2);\n", ""),
    "sums are added up before they are there": (
        "      }\n    }\n    __syncthreads();\n  }\n\n  // Adds what", "      }\n    }\n  }\n\n  // Adds what",
    ),
    "a warp is left out": (
        "for (int w = 0; w < kWarps; ++w) {\n      const float4* columns",
        "for (int w = 1; w < kWarps; ++w) {\n      const float4* columns",
    ),
    "sums relative to other scores": (
        "columns[i] = columns[i] * kept + other[i] * added", "columns[i] = columns[i] + other[i]",
    ),
    "first pieces lie on others": ("p.spare_pieces + piece.further", "piece.further"),
    "pieces of all sequences meet": ("p.arrivals + piece.further * p.num_kv_heads + head", "p.arrivals + head"),
    "the last but one to arrive adds up": ("== piece.count - 1;", "== piece.count - 2;"),
    "arrivals are left": ("      if (shared.is_last) *arrivals = 0;\n", ""),
    "the last one is not told": (
        "      if (shared.is_last) *arrivals = 0;\n    }\n    __syncthreads();\n",
        "      if (shared.is_last) *arrivals = 0;\n    }\n",
    ),
    "pieces are added up before they are read": (
        "sum_pieces(i / (kHeadSize / 8), i % (kHeadSize / 8));\n    __syncthreads();\n",
        "sum_pieces(i / (kHeadSize / 8), i % (kHeadSize / 8));\n",
    ),
    "a warp's pieces are the next one's": ("int i = warp; i < piece.count", "int i = warp + 1; i < piece.count"),
    "outputs of other heads": ("(head * p.group_size + of_head) * kHeadSize)[octet]", "of_head * kHeadSize)[octet]"),
    "sequences without tokens are no numbers": ("sum.total > 0.0f ? 1.0f / sum.total : 0.0f", "1.0f / sum.total"),
}  # fmt: skip


def first_failure(library):
    """Run what every sabotage is seen by."""
    for seed in range(2):
        few = make_decode_case([200, 0, 230, 33], Sizes(6, 2, 64), seed=seed)
        check(library, few, 8, seed=seed)
        check(library, make_many((110, 130, 200), seed), 16, seed=seed)
        check(library, make_many((70, 400, 400), seed), 2, seed=seed)
    sharp = make_decode_case([90, 20], Sizes(3, 1, 128, 32), sharpness=8.0)
    check(library, sharp, 1)
    check(library, make_decode_case([3 * LEAST_PIECE], SMALL), 3)
    check(library, make_decode_case([2200], Sizes(1, 1, 64)), 1)


def make_many(long_ones, seed):
    """Return a case of more sequences than threads, with long ones of threads of three warps."""
    lengths = [number % 3 for number in range(129)]
    lengths[2], lengths[100], lengths[128] = long_ones
    return make_decode_case(lengths, Sizes(1, 1, 64), seed=seed)


@pytest.mark.slow
def test_sources_without_sabotage_pass_what_sabotage_fails(library):
    first_failure(library)


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", SABOTAGE)
def test_sabotage_is_seen(tmp_path, sabotage):
    sources = sabotage_sources(tmp_path, "decode_attention.cuh", *SABOTAGE[sabotage])
    library = compile_decode_attention(tmp_path, sources)
    with pytest.raises(AssertionError):
        first_failure(library)
