"""The launch heuristic of the Triton `slot_linear`."""

import pytest
import torch

from shadow_kernels.ops.slot_linear.config import all_configs, choose_config
from shadow_kernels.segments import TILE_TOKENS

SHAPES = [
    (num_inputs, num_outputs) for num_inputs in (256, 1024, 4096) for num_outputs in (512, 4096)
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_inputs", "num_outputs"), SHAPES)
def test_a_decoded_row_sums_in_the_same_order_in_any_batch(dtype, num_inputs, num_outputs):
    configs = [choose_config(n, num_inputs, num_outputs, dtype) for n in (1, 3, 4, 64)]
    assert len({config.block_k for config in configs}) == 1


@pytest.mark.parametrize(("num_inputs", "num_outputs"), SHAPES)
def test_decode_is_cut_finer_than_prefill(num_inputs, num_outputs):
    decode, prefill, tall = (
        choose_config(n, num_inputs, num_outputs, torch.bfloat16) for n in (8, 2048, 8192)
    )
    assert decode.block_n < prefill.block_n
    assert decode.block_m < prefill.block_m < tall.block_m


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_inputs", "num_outputs"), SHAPES)
@pytest.mark.parametrize("num_tokens", [1, 64, 65, 512, 513, 4096, 8192])
def test_a_block_is_whole_tiles_and_its_pipeline_fits_the_smallest_shared_memory(
    dtype, num_inputs, num_outputs, num_tokens
):
    config = choose_config(num_tokens, num_inputs, num_outputs, dtype)
    assert config.block_m % TILE_TOKENS == 0
    stage = config.block_k * (config.block_m + config.block_n) * dtype.itemsize
    assert config.num_stages * stage <= 99 << 10


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_inputs", "num_outputs"), SHAPES)
@pytest.mark.parametrize(
    ("min_tokens", "max_tokens"),
    [(1, n) for n in (1, 3, 4, 64, 65, 512, 513, 4095, 4096, 9000)]
    + [(513, 9000), (513, 513), (4, 70)],
)
def test_all_configs_are_those_of_every_number_of_tokens(
    dtype, num_inputs, num_outputs, min_tokens, max_tokens
):
    sizes = range(min_tokens, max_tokens + 1)
    chosen = {choose_config(n, num_inputs, num_outputs, dtype) for n in sizes}
    listed = all_configs(min_tokens, max_tokens, num_inputs, num_outputs, dtype)
    assert set(listed) == chosen
    assert len(listed) == len(chosen)
