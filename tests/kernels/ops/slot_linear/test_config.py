"""The launch heuristic of the Triton `slot_linear`."""

import pytest
import torch

from shadow_kernels.ops.slot_linear.config import choose_config
from shadow_kernels.segments import TILE_TOKENS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_row_sums_in_the_same_order_in_any_batch(dtype):
    configs = [
        choose_config(num_tokens, num_outputs, dtype)
        for num_tokens in (1, 64, 65, 8192)
        for num_outputs in (512, 4096)
    ]
    assert len({config.block_k for config in configs}) == 1


@pytest.mark.parametrize("num_outputs", [512, 4096])
def test_decode_is_cut_finer_than_prefill(num_outputs):
    decode, prefill = (choose_config(n, num_outputs, torch.bfloat16) for n in (8, 2048))
    assert decode.block_n < prefill.block_n
    assert decode.block_m < prefill.block_m


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_block_of_tokens_is_whole_tiles(dtype):
    for num_tokens in (1, 64, 65, 512, 513, 8192):
        assert choose_config(num_tokens, 4096, dtype).block_m % TILE_TOKENS == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_pipeline_fits_the_smallest_shared_memory(dtype):
    for num_tokens in (1, 64, 65, 512, 513, 8192):
        for num_outputs in (512, 4096):
            config = choose_config(num_tokens, num_outputs, dtype)
            stage = config.block_k * (config.block_m + config.block_n) * dtype.itemsize
            assert config.num_stages * stage <= 99 << 10
