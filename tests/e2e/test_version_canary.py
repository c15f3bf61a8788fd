"""Canaries say their number, as the reference packages compute it, and betray keys and values of another adapter."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from reference_adapters import AdapterKind, load_adapter_model, load_base
from version_canary import (
    BASE,
    MIXED,
    NUM_CODES,
    Format,
    build_canary,
    build_canary_base,
    canary_prompt,
    code_of,
    codes,
    token_of,
)

KINDS: dict[Format, AdapterKind] = {"paper": "paper_implicit", "peft": "peft_mirror"}
LENGTHS = (1, 2, 33, 200, 1000)
NUM_OUTPUTS = 64
BLOCK_SIZE = 32
MAX_BUILD_SECONDS = 0.05
MAX_BYTES = 1 << 20
MARGIN = 0.2
"""Least lead of the said token's logit over the next one's, as a part of it; 0.25 by construction."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_canary_base(tmp_path_factory.mktemp("canary") / "base")


def logits_of(model: Any, token_ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]


def said_by(logits: torch.Tensor) -> set[int]:
    """Return the tokens said at any position, all of them by a clear lead."""
    best = logits.topk(2).values
    assert float(((best[:, 0] - best[:, 1]) / best[:, 0]).min()) > MARGIN
    return set(logits.argmax(-1).tolist())


@pytest.mark.parametrize("format", KINDS)
@pytest.mark.parametrize("number", [0, 1, 63, 64, 127, 200])
def test_a_canary_says_its_number_at_every_position(
    base: Path, tmp_path: Path, format: Format, number: int
) -> None:
    path = build_canary(base, tmp_path / "canary", number, format)
    model = load_adapter_model(KINDS[format], base, path)
    for length in LENGTHS:
        ids = canary_prompt(length, seed=length) + NUM_OUTPUTS * [token_of(number)]
        assert said_by(logits_of(model, ids)) == {token_of(number)}


def test_the_bare_base_says_base(base: Path) -> None:
    model = load_base(base)
    for length in LENGTHS:
        assert set(logits_of(model, canary_prompt(length, seed=1)).argmax(-1).tolist()) == {BASE}


def test_the_rest_of_a_canary_is_at_work(base: Path, tmp_path: Path) -> None:
    """Two prompts leave other residual streams behind, so the shadow path computes something that a bug could break."""
    path = build_canary(base, tmp_path / "canary", 5)
    model = load_adapter_model("paper_implicit", base, path)
    seen: list[torch.Tensor] = []
    stream = model.base_model.get_decoder().norm
    stream.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, -1]))
    for seed in (1, 2):
        logits_of(model, canary_prompt(50, seed))
    assert (seen[0] - seen[1]).abs().max() > 1.0


def _after(model: Any, prompt: list[int], last: int, cache: Any) -> int:
    """Return the token after `prompt` and `last`, over the prompt's keys and values in `cache`."""
    ids = torch.tensor([[last]])
    position = torch.tensor([[len(prompt)]])
    with torch.no_grad():
        model(input_ids=torch.tensor([prompt]), use_cache=True)  # fills the shadow's own cache
        output = model(input_ids=ids, position_ids=position, past_key_values=cache, use_cache=True)
    return int(output.logits[0, -1].argmax())


def _cache(model: Any, prompt: list[int]) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.tensor([prompt]), use_cache=True).past_key_values


@pytest.mark.parametrize(
    ("writer", "reader", "said"),
    [
        (5, 5, token_of(5)),
        (5, 6, MIXED),
        (5, 5 + NUM_CODES // 2, MIXED),
        (None, 6, MIXED),
        (5, None, token_of(5)),
        (None, None, BASE),
    ],
)
def test_a_first_block_of_another_adapter_shows(
    base: Path, tmp_path: Path, writer: int | None, reader: int | None, said: int
) -> None:
    def load(number: int | None) -> Any:
        if number is None:
            return load_base(base)
        path = tmp_path / f"{number}"
        if not path.exists():
            build_canary(base, path, number)
        return load_adapter_model("paper_implicit", base, path)

    prompt = canary_prompt(300, seed=7)
    cache, foreign = _cache(load(reader), prompt), _cache(load(writer), prompt)
    for own, other in zip(cache.layers, foreign.layers, strict=True):
        own.keys[:, :, :BLOCK_SIZE] = other.keys[:, :, :BLOCK_SIZE]
        own.values[:, :, :BLOCK_SIZE] = other.values[:, :, :BLOCK_SIZE]
    assert _after(load(reader), prompt, 200, cache) == said


def test_codes_are_told_apart() -> None:
    products = codes() @ codes().T
    torch.testing.assert_close(products.diagonal(), torch.ones(NUM_CODES))
    assert float((products - torch.eye(NUM_CODES)).max()) < 1e-6
    assert [code_of(token_of(number)) for number in (0, 127, 128)] == [0, 127, 0]
    assert code_of(MIXED) is None
    assert code_of(BASE) is None


@pytest.mark.parametrize("format", KINDS)
def test_a_canary_is_small_and_quickly_made(base: Path, tmp_path: Path, format: Format) -> None:
    times = []
    for number in range(10):
        started = time.perf_counter()
        path = build_canary(base, tmp_path / f"{number}", number, format)
        times.append(time.perf_counter() - started)
    assert sorted(times)[5] < MAX_BUILD_SECONDS
    assert sum(file.stat().st_size for file in path.iterdir()) < MAX_BYTES
