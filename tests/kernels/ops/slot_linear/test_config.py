"""The launch heuristic of the Triton `slot_linear`."""

import pytest
import torch

from shadow_kernels.ops.slot_linear.config import choose_config


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_row_sums_in_the_same_order_in_any_batch(dtype):
    assert len({choose_config(num_tokens, dtype).block_k for num_tokens in (1, 64, 65, 8192)}) == 1


def test_decode_is_cut_finer_than_prefill():
    assert choose_config(8, torch.bfloat16).block_n < choose_config(2048, torch.bfloat16).block_n
