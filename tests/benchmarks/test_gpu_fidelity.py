"""What the GPU comparison makes of the engine's distributions."""

import importlib
import math
from pathlib import Path

import pytest
import torch


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("gpu_fidelity")


def answer_of(logprobs, tokens):
    steps = [dict(enumerate(row)) for row in logprobs.tolist()]
    # an engine names the tokens in an order of its own
    return {"distributions": [dict(reversed(s.items())) for s in steps], "first_tokens": tokens}


def test_divergence_is_zero_of_itself_and_that_of_the_definition_otherwise(tool):
    exact = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]).log()
    assert tool.divergences(exact, [0, 2], answer_of(exact, [0, 2])) == pytest.approx([0.0, 0.0])
    other = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]]).log()
    expected = 0.5 * math.log(2) - 0.25 * math.log(2)
    found = tool.divergences(exact, [0, 2], answer_of(other, [0, 2]))
    assert found == pytest.approx([expected, 0.0])


def test_positions_behind_another_token_are_not_compared(tool):
    exact = torch.randn(3, 4).log_softmax(-1)
    assert len(tool.divergences(exact, [0, 2, 1], answer_of(exact, [0, 3, 1]))) == 2


def test_a_token_that_the_engine_does_not_name_shows(tool):
    exact = torch.randn(1, 4).log_softmax(-1)
    answer = answer_of(exact, [0])
    del answer["distributions"][0][3]
    assert tool.divergences(exact, [0], answer) == [math.inf]


def test_requests_take_the_adapters_in_turn(tool):
    rows = tool.build_rows({"a": Path("a"), "b": Path("b")}, 7)
    assert [name for name, _ in rows] == [None, "a", "b", None, "a", "b", None]
    assert len({tuple(tokens) for _, tokens in rows}) == 7
