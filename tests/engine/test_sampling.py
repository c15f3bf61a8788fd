"""What vLLM offers beside greedy answers, with adapters: preemption, n > 1, seeds, stop strings, logprobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from engine_cast import Cast, build_cast, write_tokenizer
from engine_oracle import LOGPROB_TOLERANCE
from engine_session import (
    Answer,
    Row,
    answer_rows,
    random_prompt,
    sampling,
    shadow_engine,
    token_prompts,
)
from reference_adapters import KINDS

NAMES = (None, *KINDS)
ROWS = tuple(Row(name, random_prompt(20, seed=3000 + i)) for i, name in enumerate(NAMES))


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    cast = build_cast("qwen3", tmp_path_factory.mktemp("sampling"))
    write_tokenizer(cast.base)
    return cast


@pytest.fixture(scope="module")
def llm(cast: Cast) -> Iterator[Any]:
    with shadow_engine(
        cast.base, cast.adapters, max_resident_adapters=3, skip_tokenizer_init=False
    ) as engine:
        yield engine


def generate(llm: Any, rows: tuple[Row, ...], **fields: Any) -> list[Any]:
    return llm.generate(token_prompts(rows), sampling(16, **fields), [r.adapter for r in rows])


def tokens(outputs: list[Any]) -> list[list[tuple[int, ...]]]:
    return [[tuple(sample.token_ids) for sample in output.outputs] for output in outputs]


def test_several_samples_follow_the_adapter(llm: Any, cast: Cast) -> None:
    outputs = generate(llm, ROWS, n=3, temperature=1.0, seed=7)
    for row, output in zip(ROWS, outputs, strict=True):
        assert len({tuple(sample.token_ids) for sample in output.outputs}) > 1
        for number in range(3):
            deviation = cast.oracle.deviation(row, Answer.of(output, number))
            assert deviation.output <= LOGPROB_TOLERANCE


def test_a_seed_reproduces_its_samples_in_any_batch(llm: Any) -> None:
    together = tokens(generate(llm, ROWS, n=2, temperature=1.0, seed=11))
    alone = [tokens(generate(llm, (row,), n=2, temperature=1.0, seed=11))[0] for row in ROWS]
    other = tokens(generate(llm, ROWS, n=2, temperature=1.0, seed=12))
    assert together == alone
    assert all(a != b for a, b in zip(together, other, strict=True))


def test_a_stop_string_ends_the_adapters_text(llm: Any) -> None:
    for row, free in zip(ROWS, generate(llm, ROWS, detokenize=True), strict=True):
        text = free.outputs[0].text
        stop = text.split()[5]
        (stopped,) = generate(llm, (row,), detokenize=True, stop=[stop])
        assert stopped.outputs[0].finish_reason == "stop"
        assert stopped.outputs[0].stop_reason == stop
        assert stopped.outputs[0].text == text[: text.index(stop)]


def test_a_stop_token_ends_the_adapters_answer(llm: Any) -> None:
    for row, (free,) in zip(ROWS, tokens(generate(llm, ROWS)), strict=True):
        (stopped,) = tokens(generate(llm, (row,), stop_token_ids=[free[4]]))
        assert stopped == [free[: free.index(free[4]) + 1]]


def test_text_prompts_reach_the_adapter(llm: Any, cast: Cast) -> None:
    row = ROWS[1]
    text = llm.llm.get_tokenizer().decode(list(row.prompt))
    (output,) = llm.generate([text], sampling(8), [row.adapter])
    assert tuple(output.prompt_token_ids) == row.prompt
    cast.oracle.check_tokens(row, Answer.of(output))


def num_preemptions(llm: Any) -> int:
    return sum(m.value for m in llm.llm.get_metrics() if m.name == "vllm:num_preemptions")


@pytest.mark.parametrize("enable_prefix_caching", [False, True])
def test_preempted_requests_recompute_to_the_same_answer(
    cast: Cast, enable_prefix_caching: bool
) -> None:
    """Few blocks and few slots: requests lose their keys and values, and adapters their slots, in turn."""
    num_tokens = 100
    rows = ROWS * 2
    with shadow_engine(
        cast.base,
        cast.adapters,
        max_resident_adapters=2,
        max_model_len=160,
        num_gpu_blocks_override=10,
        enable_prefix_caching=enable_prefix_caching,
    ) as llm:
        answers = answer_rows(llm, rows, num_tokens)
        preemptions = num_preemptions(llm)
    assert preemptions > 0
    for row, answer in zip(rows, answers, strict=True):
        assert len(answer.tokens) == num_tokens
        cast.oracle.check_tokens(row, answer)
        assert cast.oracle.deviation(row, answer).output <= LOGPROB_TOLERANCE
