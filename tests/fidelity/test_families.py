"""Every family and every kind of adapter in one engine, against the reference packages computing without a cache.

One engine per family and token budget holds fewer slots than adapters, so that adapters replace each other while the
batch runs. The same rows are answered four times: `cold` and `cached` in a mixed batch, `scored` with prompt logprobs
(which bypass the prefix cache), and `alone`, one request at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from engine_cast import Cast, build_cast
from engine_oracle import ADAPTER_MARGIN, LOGPROB_TOLERANCE, logprob_distance
from engine_session import BLOCK_SIZE, Answer, Row, answer_rows, random_prompt, shadow_engine
from reference_adapters import FAMILIES, KINDS

PROMPTS = tuple(random_prompt(length, seed=length) for length in (5, 37, 150))
"""Shorter than a block, longer than a block, longer than the small budget."""

ROWS = tuple(Row(name, prompt) for prompt in PROMPTS for name in (None, *KINDS))
NUM_TOKENS = 8
SLOTS_PER_CLASS = 2
BUDGETS = {"whole": 512, "chunked": 64}
"""Tokens per step: enough for any prompt, and less than the longest one."""

PHASES = ("cold", "cached", "scored", "alone")


@dataclass(frozen=True, slots=True)
class Transcript:
    """All answers of one engine: phase to answers, in the order of `ROWS`; and its worker's state at the end."""

    label: str
    cast: Cast
    answers: dict[str, list[Answer]]
    status: dict[str, Any]


@pytest.fixture(
    scope="module",
    params=[(family, budget) for family in FAMILIES for budget in BUDGETS],
    ids=lambda param: "-".join(param),
)
def transcript(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Transcript:
    family, budget = request.param
    cast = build_cast(family, tmp_path_factory.mktemp(family))
    with shadow_engine(
        cast.base,
        cast.adapters,
        max_resident_adapters=SLOTS_PER_CLASS,
        max_num_batched_tokens=BUDGETS[budget],
    ) as llm:
        answers = _answer_phases(llm)
        (status,) = llm.worker_status()
    return Transcript(f"{family}-{budget}", cast, answers, status)


def _answer_phases(llm: Any) -> dict[str, list[Answer]]:
    return {
        "cold": answer_rows(llm, ROWS, NUM_TOKENS),
        "cached": answer_rows(llm, ROWS, NUM_TOKENS),
        "scored": answer_rows(llm, ROWS, NUM_TOKENS, prompt_logprobs=True),
        "alone": [answer_rows(llm, [r], NUM_TOKENS, prompt_logprobs=True)[0] for r in ROWS],
    }


@pytest.mark.parametrize("phase", PHASES)
def test_tokens_equal_the_reference(transcript: Transcript, phase: str) -> None:
    for row, answer in zip(ROWS, transcript.answers[phase], strict=True):
        assert len(answer.tokens) == NUM_TOKENS
        transcript.cast.oracle.check_tokens(row, answer)


@pytest.mark.parametrize("phase", PHASES)
def test_logprobs_equal_the_reference(
    transcript: Transcript, phase: str, fidelity_report: dict[str, Any]
) -> None:
    oracle = transcript.cast.oracle
    measured = {}
    for row, answer in zip(ROWS, transcript.answers[phase], strict=True):
        deviation = oracle.deviation(row, answer)
        key = f"{row.adapter or 'base'}-{len(row.prompt)}"
        measured[key] = {"prompt": deviation.prompt, "output": deviation.output}
    fidelity_report[f"families/{transcript.label}/{phase}"] = measured
    worst = max(max(d.values()) for d in measured.values())
    assert worst <= LOGPROB_TOLERANCE, measured


def test_a_free_run_of_the_reference_gives_the_same_tokens(transcript: Transcript) -> None:
    for row, answer in zip(ROWS, transcript.answers["cold"], strict=True):
        assert answer.tokens == transcript.cast.oracle.generate(row.adapter, row.prompt, NUM_TOKENS)


def test_every_kind_of_adapter_differs_from_the_base(
    transcript: Transcript, fidelity_report: dict[str, Any]
) -> None:
    scored = dict(zip(ROWS, transcript.answers["scored"], strict=True))
    distances = {}
    for kind in KINDS:
        pairs = [(scored[Row(kind, prompt)], scored[Row(None, prompt)]) for prompt in PROMPTS]
        distances[kind] = min(logprob_distance(*pair) for pair in pairs)
        assert any(adapted.tokens != base.tokens for adapted, base in pairs)
    fidelity_report[f"margins/{transcript.label}"] = distances
    assert min(distances.values()) > ADAPTER_MARGIN, distances


def test_the_second_pass_came_from_the_prefix_cache(transcript: Transcript) -> None:
    cold = dict(zip(ROWS, transcript.answers["cold"], strict=True))
    cached = dict(zip(ROWS, transcript.answers["cached"], strict=True))
    for row in ROWS:
        assert cold[row].num_cached_tokens == 0, row.adapter
        assert cached[row].num_cached_tokens == len(row.prompt) // BLOCK_SIZE * BLOCK_SIZE, (
            row.adapter
        )


def test_prompt_logprobs_cover_the_whole_prompt(transcript: Transcript) -> None:
    for phase in ("scored", "alone"):
        for row, answer in zip(ROWS, transcript.answers[phase], strict=True):
            assert len(answer.prompt_logprobs) == len(row.prompt) - 1
            assert answer.num_cached_tokens == 0


def test_adapters_had_to_replace_each_other(transcript: Transcript) -> None:
    assert len(transcript.status["held"]) == len(KINDS)
    assert len(transcript.status["resident"]) <= transcript.status["num_slots"] < len(KINDS)
