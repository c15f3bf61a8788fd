"""Rows without an adapter are the unmodified vLLM's, bit for bit, whatever adapters share their batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from engine_cast import Cast, build_cast
from engine_oracle import ADAPTER_MARGIN, logprob_distance
from engine_session import Answer, Row, answer_rows, random_prompt, shadow_engine
from engine_stock import answer_with_stock
from reference_adapters import KINDS

NUM_TOKENS = 10
NAMES = (None, KINDS[0], None, KINDS[2], None, KINDS[3], KINDS[5], None)
LENGTHS = (7, 40, 150, 33, 64, 90, 5, 21)
ROWS = tuple(
    Row(name, random_prompt(length, seed=1000 + length))
    for name, length in zip(NAMES, LENGTHS, strict=True)
)
BASE_ROWS = tuple(index for index, row in enumerate(ROWS) if row.adapter is None)
# Four adapters fit the four slots, so the scheduler composes the same batches as without any.
ENGINE: dict[str, Any] = {"max_num_batched_tokens": 128, "num_gpu_blocks_override": 512}


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_base_rows_of_a_mixed_batch_equal_stock_vllm_bit_for_bit(
    family: str, tmp_path: Path
) -> None:
    cast = build_cast(family, tmp_path / "cast")
    stock = answer_with_stock(cast.base, ROWS, NUM_TOKENS, tmp_path, **ENGINE)
    mixed, bare = _answer_with_shadow(cast)
    for index in BASE_ROWS:
        assert mixed[index] == stock[index], f"row {index} beside adapters"
    for index, answer in enumerate(bare):
        assert answer == stock[index], f"row {index} without any adapter"
    for index in set(range(len(ROWS))) - set(BASE_ROWS):
        assert logprob_distance(mixed[index], stock[index]) > ADAPTER_MARGIN


def _answer_with_shadow(cast: Cast) -> tuple[list[Answer], list[Answer]]:
    with shadow_engine(cast.base, cast.adapters, max_resident_adapters=4, **ENGINE) as llm:
        mixed = answer_rows(llm, ROWS, NUM_TOKENS, prompt_logprobs=True)
        unadapted = [dataclasses.replace(row, adapter=None) for row in ROWS]
        bare = answer_rows(llm, unadapted, NUM_TOKENS, prompt_logprobs=True)
    return mixed, bare
