"""A row's answer does not depend on its neighbours: sixteen mixed rows equal each row alone."""

from __future__ import annotations

from typing import Any

import pytest

from engine_cast import build_cast
from engine_oracle import LOGPROB_TOLERANCE, logprob_distance
from engine_session import Row, answer_rows, random_prompt, shadow_engine
from reference_adapters import KINDS

NUM_ROWS = 16
NUM_TOKENS = 12
LENGTHS = (3, 9, 33, 64, 70, 121, 2, 48)
NAMES = (None, *KINDS)
ROWS = tuple(
    Row(NAMES[index % len(NAMES)], random_prompt(LENGTHS[index % len(LENGTHS)], seed=index))
    for index in range(NUM_ROWS)
)


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "gpt2"])
def test_sixteen_mixed_rows_equal_each_row_alone(
    family: str, tmp_path_factory: pytest.TempPathFactory, fidelity_report: dict[str, Any]
) -> None:
    cast = build_cast(family, tmp_path_factory.mktemp(family))
    with shadow_engine(
        cast.base, cast.adapters, max_resident_adapters=len(KINDS), max_num_batched_tokens=2048
    ) as llm:
        together = answer_rows(llm, ROWS, NUM_TOKENS, prompt_logprobs=True)
        alone = [answer_rows(llm, [row], NUM_TOKENS, prompt_logprobs=True)[0] for row in ROWS]
    assert [a.tokens for a in together] == [a.tokens for a in alone]
    worst = max(logprob_distance(a, b) for a, b in zip(together, alone, strict=True))
    fidelity_report[f"batch_invariance/{family}"] = worst
    assert worst <= LOGPROB_TOLERANCE
    assert len({a.tokens for a in together}) > NUM_ROWS // 2, (
        "rows must differ for this to mean anything"
    )
