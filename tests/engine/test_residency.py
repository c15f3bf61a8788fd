"""Adapters are placed, pinned and released beside a running engine, and prefixes are nobody else's business."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_cast import Cast, build_cast
from engine_oracle import LOGPROB_TOLERANCE
from engine_session import (
    BLOCK_SIZE,
    Answer,
    Row,
    answer_rows,
    random_prompt,
    sampling,
    shadow_engine,
)
from reference_adapters import KINDS
from shadow_runtime import errors
from shadow_runtime.slots.derive import SlotOptions
from shadow_runtime.vllm_bridge.request_tag import combine_salts

NAMES = (KINDS[0], KINDS[2], KINDS[5])
PROMPT = random_prompt(70, seed=71)
NUM_CACHED = len(PROMPT) // BLOCK_SIZE * BLOCK_SIZE
NUM_TOKENS = 5


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    return build_cast("qwen3", tmp_path_factory.mktemp("residency"))


@pytest.fixture(scope="module")
def engine(cast: Cast) -> Iterator[Any]:
    """One slot a class for steps, one to pin."""
    named = {name: cast.adapters[name] for name in NAMES}
    options = SlotOptions(max_resident_adapters=1, max_pinned_adapters=1)
    with shadow_engine(cast.base, named, options=options) as llm:
        yield llm


@pytest.fixture
def llm(engine: Any) -> Iterator[Any]:
    """The engine with nothing in its slots and nothing in its prefix cache."""
    engine.llm.reset_prefix_cache()
    yield engine
    for name in NAMES:
        engine.unpin(name)
        engine.release_slot(name)


def status(llm: Any) -> dict[str, Any]:
    (only,) = llm.worker_status()
    return only


def digests(llm: Any, *names: str) -> set[str]:
    return {llm.adapters[name].manifest.digest for name in names}


def check(cast: Cast, llm: Any, *names: str | None) -> None:
    """Answer one row of each adapter and compare with the oracle."""
    rows = [Row(name, random_prompt(20, seed=80 + i)) for i, name in enumerate(names)]
    for row, answer in zip(rows, answer_rows(llm, rows, NUM_TOKENS), strict=True):
        cast.oracle.check_tokens(row, answer)
        assert cast.oracle.deviation(row, answer).worst <= LOGPROB_TOLERANCE


def test_a_prefetched_adapter_answers_from_its_slot(llm: Any, cast: Cast) -> None:
    assert llm.prefetch(NAMES[0])
    assert status(llm)["resident"].keys() == digests(llm, NAMES[0])
    check(cast, llm, NAMES[0], None)
    llm.release_slot(NAMES[0])
    assert status(llm)["resident"] == {}
    assert digests(llm, NAMES[0]) <= set(status(llm)["held"])
    check(cast, llm, NAMES[0])


def test_a_pinned_adapter_stays_while_others_take_turns(llm: Any, cast: Cast) -> None:
    llm.pin(NAMES[0])
    (slot,) = status(llm)["resident"].values()
    # One slot is left for steps; the scheduler lets one adapter in at a time, the pinned one included.
    for _ in range(2):
        check(cast, llm, NAMES[1], NAMES[2], NAMES[0], None)
        assert status(llm)["resident"][llm.adapters[NAMES[0]].manifest.digest] == slot
    assert set(status(llm)["pinned"]) == digests(llm, NAMES[0])


def test_pins_beyond_the_reserve_are_refused(llm: Any, cast: Cast) -> None:
    same_class = _two_of_one_class(llm)
    llm.pin(same_class[0])
    with pytest.raises(errors.CapacityError, match="all 1 pins"):
        llm.pin(same_class[1])
    llm.unpin(same_class[0])
    llm.pin(same_class[1])
    llm.unpin(same_class[1])
    check(cast, llm, *same_class)


def _two_of_one_class(llm: Any) -> list[str]:
    from shadow_runtime.slots.layout import choose_class

    by_class: dict[int, list[str]] = {}
    for name in NAMES:
        index = choose_class(llm.plan.config, llm.adapters[name].manifest)
        by_class.setdefault(index, []).append(name)
    return max(by_class.values(), key=len)[:2]


# Prefixes ----------------------------------------------------------------------------------------


def cached(llm: Any, adapter: str | None, salt: str | None) -> int:
    """Return how many of the prompt's tokens came from the prefix cache."""
    prompt: dict[str, Any] = {"prompt_token_ids": list(PROMPT)}
    if salt is not None:
        prompt["cache_salt"] = salt
    (output,) = llm.generate([prompt], sampling(NUM_TOKENS), [adapter])
    return Answer.of(output).num_cached_tokens


@pytest.mark.parametrize("adapter", [None, NAMES[0]], ids=["base", "adapter"])
def test_a_tenants_prefix_is_invisible_to_another(llm: Any, adapter: str | None) -> None:
    one, two = combine_salts("one", None), combine_salts("two", None)
    assert cached(llm, adapter, one) == 0
    assert cached(llm, adapter, one) == NUM_CACHED
    assert cached(llm, adapter, two) == 0, "the second tenant learns what the first one asked"
    assert cached(llm, adapter, None) == 0
    # A client that names the other tenant's salt only divides its own tenant's blocks.
    assert cached(llm, adapter, combine_salts("two", "one")) == 0
    assert cached(llm, adapter, two) == NUM_CACHED


def test_two_names_of_one_digest_share_one_copy_on_host_and_device(
    llm: Any, cast: Cast, tmp_path: Path
) -> None:
    held = len(status(llm)["held"])
    llm.load_adapter("second name", cast.adapters[NAMES[0]])
    try:
        assert len(status(llm)["held"]) == held
        rows = [Row(NAMES[0], PROMPT), Row("second name", PROMPT)]
        first, second = answer_rows(llm, rows, NUM_TOKENS)
        assert first.tokens == second.tokens
        assert status(llm)["resident"].keys() == digests(llm, NAMES[0])
    finally:
        llm.unload_adapter("second name")
    assert len(status(llm)["held"]) == held
