"""Canary: thousands of mixed requests over more adapters than slots, and no answer of the wrong adapter."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest

from engine_cast import Cast, build_cast
from engine_session import Row, answer_rows, random_prompt, sampling, shadow_engine, token_prompts

NUM_ADAPTERS = 12
NUM_SLOTS = 4
NUM_REQUESTS = 2000
NUM_TOKENS = 4
# One prompt fills a whole KV block, so that cached prefixes of all adapters are about, too.
PROMPTS = tuple(random_prompt(length, seed=2000 + length) for length in (4, 11, 40))


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    cast = build_cast("qwen3", tmp_path_factory.mktemp("canary"), per_kind=2)
    assert len(cast.adapters) == NUM_ADAPTERS
    return cast


@pytest.fixture(scope="module")
def llm(cast: Cast) -> Iterator[Any]:
    with shadow_engine(
        cast.base,
        cast.adapters,
        max_resident_adapters=NUM_SLOTS,
        max_num_seqs=256,
        max_num_batched_tokens=2048,
    ) as engine:
        yield engine


@pytest.fixture(scope="module")
def expected(cast: Cast) -> dict[Row, tuple[int, ...]]:
    """Each row's answer by the reference; a canary needs answers that no two adapters share."""
    rows = [Row(name, prompt) for prompt in PROMPTS for name in (None, *cast.adapters)]
    answers = {r: cast.oracle.generate(r.adapter, r.prompt, NUM_TOKENS) for r in rows}
    for prompt in PROMPTS:
        of_prompt = [answers[Row(name, prompt)] for name in (None, *cast.adapters)]
        assert all(a != b for a, b in itertools.combinations(of_prompt, 2))
    return answers


def test_each_adapter_alone_gives_its_own_answer(
    llm: Any, expected: dict[Row, tuple[int, ...]]
) -> None:
    for row, tokens in expected.items():
        assert answer_rows(llm, [row], NUM_TOKENS)[0].tokens == tokens, row.adapter


@pytest.mark.timeout(600)
def test_no_request_is_answered_by_the_wrong_adapter(
    llm: Any, expected: dict[Row, tuple[int, ...]]
) -> None:
    rows = random.Random(0).choices(list(expected), k=NUM_REQUESTS)
    outputs = llm.generate(
        token_prompts(rows), sampling(NUM_TOKENS, logprobs=None), [row.adapter for row in rows]
    )
    wrong = [
        (index, row.adapter)
        for index, (row, output) in enumerate(zip(rows, outputs, strict=True))
        if tuple(output.outputs[0].token_ids) != expected[row]
    ]
    assert wrong == []
    assert len({row.adapter for row in rows}) == NUM_ADAPTERS + 1


def test_adapters_took_turns_in_the_slots(llm: Any) -> None:
    (status,) = llm.worker_status()
    assert len(status["held"]) == NUM_ADAPTERS
    assert len(status["resident"]) < NUM_ADAPTERS
