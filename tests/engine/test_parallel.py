"""Two workers answer as one does: tensor parallel and pipeline parallel, with adapters, in spawned processes."""

from __future__ import annotations

from typing import Any

import pytest

from engine_cast import Cast, build_cast
from engine_oracle import LOGPROB_TOLERANCE
from engine_session import Answer, Row, answer_rows, random_prompt, shadow_engine

KINDS = ("paper_implicit_two_layers", "paper_explicit", "peft_mirror_narrow")
ROWS = tuple(
    Row(name, random_prompt(length, seed=4000 + length))
    for length in (6, 90)
    for name in (None, *KINDS)
)
NUM_TOKENS = 6


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    return build_cast("qwen3", tmp_path_factory.mktemp("parallel"))


@pytest.fixture(scope="module")
def single(cast: Cast) -> list[Answer]:
    return _answers(cast)[0]


def _answers(cast: Cast, **engine_args: Any) -> tuple[list[Answer], list[dict[str, Any]]]:
    named = {kind: cast.adapters[kind] for kind in KINDS}
    with shadow_engine(
        cast.base, named, max_resident_adapters=2, max_num_batched_tokens=64, **engine_args
    ) as llm:
        return answer_rows(llm, ROWS, NUM_TOKENS, prompt_logprobs=True), llm.worker_status()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_two_workers_answer_as_one(
    cast: Cast, single: list[Answer], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    answers, workers = _answers(cast, distributed_executor_backend="mp", **{way: 2})
    assert [worker["active"] for worker in workers] == [True, True]
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in single]
    for row, answer in zip(ROWS, answers, strict=True):
        cast.oracle.check_tokens(row, answer)
        assert cast.oracle.deviation(row, answer).worst <= LOGPROB_TOLERANCE


@pytest.mark.slow
def test_a_user_process_gets_its_engine_core_in_another_process(
    cast: Cast, single: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other engine test runs in process; this is vLLM's default, where the plugin is loaded by entry point."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    answers, workers = _answers(cast)
    assert [worker["active"] for worker in workers] == [True]
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in single]
