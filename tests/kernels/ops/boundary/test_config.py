"""The launch heuristic of the Triton `boundary_`."""

import pytest
import torch

from shadow_kernels.ops.boundary.config import choose_config


@pytest.mark.parametrize("hidden_size", [1, 64, 896, 1000, 2560, 4096, 5120, 8192])
@pytest.mark.parametrize(("gate_size", "rank"), [(8, 16), (10, 10), (64, 64), (1, 1)])
def test_blocks_cover_every_column_and_products_accept_them(hidden_size, gate_size, rank):
    config = choose_config(hidden_size, gate_size, rank, torch.bfloat16)
    assert (
        (config.num_chunks - 1) * config.block_d < hidden_size <= config.num_chunks * config.block_d
    )
    assert config.num_chunks <= config.block_chunks <= 32
    assert config.block_g >= max(16, gate_size)
    assert config.block_r >= max(16, rank)
    for block in (config.block_d, config.block_g, config.block_r, config.block_chunks):
        assert block & (block - 1) == 0


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(torch.float32, "ieee"), (torch.float16, "ieee"), (torch.bfloat16, "tf32")],
)
def test_only_bf16_products_are_shortened(dtype, precision):
    assert choose_config(4096, 8, 16, dtype).precision == precision
