"""Cached prefixes belong to a digest: a name with new bytes never meets the keys and values of its old ones.

The adapters are canaries, which say `MIXED` over a first block that another adapter wrote. The second test takes the
digest out of the key of the prefix cache and sees exactly that, so the first one could not pass without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_session import BLOCK_SIZE, Row, answer_rows, shadow_engine
from shadow_runtime.vllm_bridge.request import adapter_name
from version_canary import (
    BASE,
    MIXED,
    build_canary,
    build_canary_base,
    canary_prompt,
    token_of,
)

PROMPT = tuple(canary_prompt(200, seed=1))
NUM_TOKENS = 4
NUM_CACHED = len(PROMPT) // BLOCK_SIZE * BLOCK_SIZE


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    base = build_canary_base(tmp_path_factory.mktemp("prefix") / "base")
    named = {"paper": build_canary(base, base.with_name("paper"), 100)}
    named["peft"] = build_canary(base, base.with_name("peft"), 101, "peft")
    with shadow_engine(base, named, max_resident_adapters=2) as llm:
        yield llm, base


@pytest.fixture
def llm(engine: Any) -> Iterator[Any]:
    llm, _ = engine
    llm.llm.reset_prefix_cache()
    yield llm
    for name in [name for name in llm.adapters if name not in ("paper", "peft")]:
        llm.unload_adapter(name)


def publish(llm: Any, engine: Any, directory: Path, number: int) -> None:
    """Bind the name `hot` to canary `number`."""
    if "hot" in llm.adapters:
        llm.unload_adapter("hot")
    path = directory / f"{number}"
    llm.load_adapter("hot", path if path.exists() else build_canary(engine[1], path, number))


def said(llm: Any, name: str | None) -> tuple[tuple[int, ...], int]:
    """Return what the adapter says to the prompt, and how much of the prompt was cached."""
    answer = answer_rows(llm, [Row(name, PROMPT)], NUM_TOKENS)[0]
    return answer.tokens, answer.num_cached_tokens


def test_new_bytes_start_without_a_prefix_and_old_ones_find_theirs(
    llm: Any, engine: Any, tmp_path: Path
) -> None:
    for number, num_cached in ((7, 0), (7, NUM_CACHED), (8, 0), (8, NUM_CACHED), (7, NUM_CACHED)):
        publish(llm, engine, tmp_path, number)
        assert said(llm, "hot") == (NUM_TOKENS * (token_of(number),), num_cached)
    assert said(llm, None) == (NUM_TOKENS * (BASE,), 0)
    assert said(llm, "peft") == (NUM_TOKENS * (token_of(101),), 0)


def test_another_name_of_the_same_bytes_finds_the_prefix(
    llm: Any, engine: Any, tmp_path: Path
) -> None:
    publish(llm, engine, tmp_path, 7)
    assert said(llm, "hot") == (NUM_TOKENS * (token_of(7),), 0)
    llm.load_adapter("twin", tmp_path / "7")
    assert said(llm, "twin") == (NUM_TOKENS * (token_of(7),), NUM_CACHED)


def test_without_the_digest_in_the_key_stale_blocks_show(
    llm: Any, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.core import kv_cache_utils

    def name_only(request: Any) -> list[tuple[str, str]]:
        lora = request.lora_request
        return [("lora", adapter_name(lora))] if lora else []

    monkeypatch.setattr(kv_cache_utils, "_gen_lora_extra_hash_keys", name_only)
    publish(llm, engine, tmp_path, 7)
    assert said(llm, "hot") == (NUM_TOKENS * (token_of(7),), 0)
    publish(llm, engine, tmp_path, 8)
    tokens, num_cached = said(llm, "hot")
    assert num_cached == NUM_CACHED
    assert set(tokens) == {MIXED}


def test_without_any_adapter_in_the_key_the_base_says_another_ones_words(
    llm: Any, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.core import kv_cache_utils

    monkeypatch.setattr(kv_cache_utils, "_gen_lora_extra_hash_keys", lambda request: [])
    publish(llm, engine, tmp_path, 7)
    said(llm, "hot")
    assert said(llm, None) == (NUM_TOKENS * (token_of(7),), NUM_CACHED)
    assert set(said(llm, "peft")[0]) == {MIXED}
