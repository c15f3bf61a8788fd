"""The comparison itself: an honest answer passes, a slightly wrong adapter does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine_cast import Cast, build_cast
from engine_oracle import (
    LOGPROB_TOLERANCE,
    AdapterFiles,
    Oracle,
    TokenMismatchError,
    logprob_distance,
)
from engine_session import Answer, Row, random_prompt

PROMPT = random_prompt(40, seed=5)
ALPHA_FIELDS = {
    "paper_implicit": ("alpha", "shadow_config.json"),
    "peft_mirror": ("shadow_alpha", "adapter_config.json"),
}


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    return build_cast("qwen3", tmp_path_factory.mktemp("qwen3"))


def perfect_engine(oracle: Oracle, row: Row, num_tokens: int = 6) -> Answer:
    """Answer like an engine, from the reference's own logits."""
    tokens = oracle.generate(row.adapter, row.prompt, num_tokens)
    logprobs = oracle.logprobs(row.adapter, row.prompt + tokens)
    entries = [dict(enumerate(position.tolist())) for position in logprobs[:-1]]
    start = len(row.prompt) - 1
    return Answer(tokens, tuple(entries[start:]), tuple(entries[:start]), 0)


def sabotaged(cast: Cast, kind: str, directory: Path) -> Oracle:
    """Return an oracle whose adapter of `kind` is a damaged copy in `directory`."""
    files = AdapterFiles(kind, directory)  # type: ignore[arg-type]
    return Oracle(cast.base, {kind: files})


def test_a_perfect_engine_passes(cast: Cast) -> None:
    for name in (None, *cast.adapters):
        row = Row(name, PROMPT)
        answer = perfect_engine(cast.oracle, row)
        cast.oracle.check_tokens(row, answer)
        assert cast.oracle.deviation(row, answer).worst <= 1e-6


@pytest.mark.parametrize("kind", ALPHA_FIELDS)
def test_one_percent_of_alpha_is_seen(cast: Cast, kind: str, tmp_path: Path) -> None:
    name, config_file = (
        ("alpha", "shadow_config.json")
        if kind == "paper_implicit"
        else ("shadow_alpha", "adapter_config.json")
    )
    shutil.copytree(cast.adapters[kind], tmp_path / "bad")
    config = json.loads((tmp_path / "bad" / config_file).read_text())
    config[name] *= 1.01
    (tmp_path / "bad" / config_file).write_text(json.dumps(config))
    row = Row(kind, PROMPT)
    answer = perfect_engine(sabotaged(cast, kind, tmp_path / "bad"), row)
    assert cast.oracle.deviation(row, answer).worst > 10 * LOGPROB_TOLERANCE


def test_a_dropped_layer_is_seen(cast: Cast, tmp_path: Path) -> None:
    shutil.copytree(cast.adapters["paper_implicit"], tmp_path / "bad")
    file = tmp_path / "bad" / "shadow_adapter.safetensors"
    tensors = load_file(file)
    tensors["shadow_injection_model.injection_ups"][-1].zero_()
    save_file(tensors, file)
    row = Row("paper_implicit", PROMPT)
    answer = perfect_engine(sabotaged(cast, "paper_implicit", tmp_path / "bad"), row)
    assert cast.oracle.deviation(row, answer).worst > 10 * LOGPROB_TOLERANCE


def test_the_wrong_adapter_gives_other_tokens(cast: Cast) -> None:
    answer = perfect_engine(cast.oracle, Row("peft_mirror", PROMPT))
    with pytest.raises(TokenMismatchError, match="peft_partial"):
        cast.oracle.check_tokens(Row("peft_partial", PROMPT), answer)


def test_a_nan_logprob_is_an_infinite_deviation(cast: Cast) -> None:
    row = Row(None, PROMPT)
    answer = perfect_engine(cast.oracle, row)
    answer.output_logprobs[2][7] = float("nan")
    assert cast.oracle.deviation(row, answer).output == float("inf")


def test_distance_sees_one_changed_token(cast: Cast) -> None:
    row = Row(None, PROMPT)
    first, second = perfect_engine(cast.oracle, row), perfect_engine(cast.oracle, row)
    second.prompt_logprobs[-1][3] += 0.25
    assert logprob_distance(first, first) == 0.0
    assert logprob_distance(first, second) == pytest.approx(0.25)


def test_the_reference_is_causal(cast: Cast) -> None:
    """Teacher forcing stands for a free run only if later tokens never reach back."""
    longer = PROMPT + random_prompt(20, seed=6)
    for name in (None, *cast.adapters):
        short, long = (cast.oracle.logprobs(name, ids) for ids in (PROMPT, longer))
        assert torch.allclose(short, long[: len(PROMPT)], atol=2e-5)
