"""What an engine must answer: the reference packages' logits, computed without any cache, and the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from engine_session import Answer, Row
from reference_adapters import AdapterKind, load_adapter_model, load_base

LOGPROB_TOLERANCE = 1e-4
"""Largest |logprob - reference| that a fp32 engine may show."""

ADAPTER_MARGIN = 0.05
"""Smallest max |logprob - base's| that an adapter must show, else a comparison could pass without it."""


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter on disk and the reference package's way to load it."""

    kind: AdapterKind
    path: Path


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far an answer is from the reference: largest |logprob difference| over prompt and over output tokens."""

    prompt: float
    output: float

    @property
    def worst(self) -> float:
        """The larger of the two."""
        return max(self.prompt, self.output)


class TokenMismatchError(AssertionError):
    """The engine generated other tokens than the reference."""


@dataclass
class Oracle:
    """Reference logprobs of one base and its adapters; models and results are kept, since many answers repeat.

    Attributes:
        base_dir: the base checkpoint.
        adapters: name to files; None as a row's adapter means the bare base.
    """

    base_dir: Path
    adapters: Mapping[str, AdapterFiles]
    _models: dict[str | None, nn.Module] = field(default_factory=dict)
    _logprobs: dict[tuple[str | None, tuple[int, ...]], torch.Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def logprobs(self, adapter: str | None, token_ids: Sequence[int]) -> torch.Tensor:
        """Return (num_tokens, vocab_size) fp32 log probabilities of the token after each position."""
        key = (adapter, tuple(token_ids))
        if key not in self._logprobs:
            ids = torch.tensor([list(token_ids)])
            logits = self._model(adapter)(input_ids=ids, use_cache=False).logits[0]
            self._logprobs[key] = logits.float().log_softmax(-1)
        return self._logprobs[key]

    def generate(
        self, adapter: str | None, prompt: Sequence[int], num_tokens: int
    ) -> tuple[int, ...]:
        """Return the greedy continuation, each token from a full recomputation."""
        ids = list(prompt)
        for _ in range(num_tokens):
            ids.append(int(self.logprobs(adapter, ids)[-1].argmax()))
        return tuple(ids[len(prompt) :])

    def _model(self, adapter: str | None) -> nn.Module:
        if adapter not in self._models:
            self._models[adapter] = self._load(adapter)
        return self._models[adapter]

    def _load(self, adapter: str | None) -> nn.Module:
        if adapter is None:
            return load_base(self.base_dir)
        files = self.adapters[adapter]
        return load_adapter_model(files.kind, self.base_dir, files.path)

    def check_tokens(self, row: Row, answer: Answer) -> None:
        """Raise TokenMismatchError unless every generated token is the reference's best at its place.

        By induction that is equality with the reference's own greedy run.
        """
        logprobs = self.logprobs(row.adapter, row.prompt + answer.tokens)
        expected = tuple(logprobs[len(row.prompt) - 1 : -1].argmax(-1).tolist())
        if answer.tokens != expected:
            raise TokenMismatchError(
                f"adapter {row.adapter!r}, prompt of {len(row.prompt)}: got {answer.tokens}, reference {expected}"
            )

    def deviation(self, row: Row, answer: Answer) -> Deviation:
        """Return the largest differences over all logprobs that the answer carries."""
        logprobs = self.logprobs(row.adapter, row.prompt + answer.tokens)
        start = len(row.prompt) - 1
        return Deviation(
            prompt=_largest_difference(answer.prompt_logprobs, logprobs),
            output=_largest_difference(answer.output_logprobs, logprobs[start:]),
        )

    def greedy_margin(self, row: Row, answer: Answer) -> float:
        """Return the smallest gap between best and second-best logprob over the generated tokens."""
        best = self.logprobs(row.adapter, row.prompt + answer.tokens)[len(row.prompt) - 1 : -1]
        top = best.topk(2).values
        return float((top[:, 0] - top[:, 1]).min())


def _largest_difference(entries: Sequence[dict[int, float]], logprobs: torch.Tensor) -> float:
    differences = [
        abs(value - float(logprobs[position, token]))
        for position, entry in enumerate(entries)
        for token, value in entry.items()
    ]
    # max() of a list with NaN depends on the order; a NaN must never pass for a small number.
    return max((float("inf") if d != d else d for d in differences), default=0.0)


def logprob_distance(first: Answer, second: Answer) -> float:
    """Return the largest |difference| over tokens that both answers score at the same place; 0 without any."""
    pairs = [
        *zip(first.prompt_logprobs, second.prompt_logprobs, strict=False),
        *zip(first.output_logprobs, second.output_logprobs, strict=False),
    ]
    return max((abs(a[t] - b[t]) for a, b in pairs for t in a.keys() & b.keys()), default=0.0)
