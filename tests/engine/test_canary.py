"""Canary: thousands of mixed requests over more adapters than slots, and no answer of the wrong adapter."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from engine_cast import Cast, build_cast
from engine_session import Row, answer_rows, random_prompt, sampling, shadow_engine, token_prompts
from reference_adapters import KINDS, AdapterKind
from shadow_runtime.slots.derive import SlotOptions

NUM_ADAPTERS = 12
NUM_SLOTS = 4
NUM_REQUESTS = 2000
NUM_TOKENS = 4
# The longest prompt fills a whole KV block, so that cached prefixes of all adapters are about, too.
LENGTHS = (4, 11, 40)
MAX_PROMPTS_TRIED = 100


@dataclass(frozen=True, slots=True)
class Stage:
    """Twelve adapters on four slots: `kinds`, and how many slots each of their slot classes has."""

    kinds: tuple[AdapterKind, ...]
    slots_per_class: int


# All of one geometry, and two geometries that share the KV cache.
STAGES = {
    "one-class": Stage(
        ("paper_implicit", "paper_implicit_two_layers", "peft_mirror", "peft_partial"), 4
    ),
    "two-classes": Stage(KINDS, 2),
}


@pytest.fixture(scope="module", params=STAGES)
def stage(request: pytest.FixtureRequest) -> Stage:
    return STAGES[request.param]


@pytest.fixture(scope="module")
def cast(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Cast:
    per_kind = NUM_ADAPTERS // len(stage.kinds)
    directory = tmp_path_factory.mktemp("canary")
    return build_cast("qwen3", directory, kinds=stage.kinds, per_kind=per_kind)


@pytest.fixture(scope="module")
def llm(cast: Cast, stage: Stage) -> Iterator[Any]:
    with shadow_engine(
        cast.base,
        cast.adapters,
        options=SlotOptions(max_resident_adapters=stage.slots_per_class, max_pinned_adapters=0),
        max_num_seqs=256,
        max_num_batched_tokens=2048,
    ) as engine:
        yield engine


@pytest.fixture(scope="module")
def expected(cast: Cast) -> dict[Row, tuple[int, ...]]:
    """Each row's answer by the reference, for one telling prompt of each length."""
    return {
        row: tokens for length in LENGTHS for row, tokens in _telling_rows(cast, length).items()
    }


def _telling_rows(cast: Cast, length: int) -> dict[Row, tuple[int, ...]]:
    """Return the answers to the first random prompt that no two adapters answer alike."""
    for seed in range(MAX_PROMPTS_TRIED):
        rows = [Row(name, random_prompt(length, seed=seed)) for name in (None, *cast.adapters)]
        answers = {r: cast.oracle.generate(r.adapter, r.prompt, NUM_TOKENS) for r in rows}
        if len(set(answers.values())) == len(rows):
            return answers
    raise AssertionError(f"no prompt of length {length} tells the adapters apart")


def test_each_adapter_alone_gives_its_own_answer(
    llm: Any, expected: dict[Row, tuple[int, ...]]
) -> None:
    for row, tokens in expected.items():
        assert answer_rows(llm, [row], NUM_TOKENS)[0].tokens == tokens, row.adapter


def _find_wrong(llm: Any, rows: list[Row], expected: dict[Row, tuple[int, ...]]) -> list[int]:
    outputs = llm.generate(
        token_prompts(rows), sampling(NUM_TOKENS, logprobs=None), [row.adapter for row in rows]
    )
    return [
        index
        for index, (row, output) in enumerate(zip(rows, outputs, strict=True))
        if tuple(output.outputs[0].token_ids) != expected[row]
    ]


@pytest.mark.timeout(600)
def test_no_request_is_answered_by_the_wrong_adapter(
    llm: Any, expected: dict[Row, tuple[int, ...]]
) -> None:
    rows = random.Random(0).choices(list(expected), k=NUM_REQUESTS)
    assert len({row.adapter for row in rows}) == NUM_ADAPTERS + 1
    assert _find_wrong(llm, rows, expected) == []


def test_the_canary_sees_one_token_in_a_wrong_slot(
    llm: Any, expected: dict[Row, tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test of the test: every step's last token is given to the adapter of the step's first."""
    from shadow_runtime.vllm_bridge.residency import AdapterResidency

    token_slots = AdapterResidency._token_slots

    def misplace(self: Any, ids: Any) -> Any:
        slots = token_slots(self, ids)
        slots[-1] = slots[0]
        return slots

    rows = random.Random(1).choices(list(expected), k=20)
    llm.llm.reset_prefix_cache()
    assert _find_wrong(llm, rows, expected) == []
    monkeypatch.setattr(AdapterResidency, "_token_slots", misplace)
    llm.llm.reset_prefix_cache()
    assert _find_wrong(llm, rows, expected) != []
    # What the sabotaged steps cached is wrong, too.
    llm.llm.reset_prefix_cache()


def test_adapters_took_turns_in_the_slots(llm: Any) -> None:
    (status,) = llm.worker_status()
    assert len(status["held"]) == NUM_ADAPTERS
    assert status["num_slots"] == NUM_SLOTS
