"""One training loop for every model of the demo: batches of seeded examples, AdamW, one cosine."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

IGNORED_LABEL = -100
_LOG_EVERY = 100


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and its answer; the loss counts the answer, and the prompt when `learn_prompt`."""

    prompt: str
    answer: str
    learn_prompt: bool = False


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        num_steps: optimiser steps.
        batch_size: examples per step.
        learning_rate: peak, reached after the warm-up.
        num_warmup_steps: steps of linear warm-up; a cosine to a twentieth of the peak follows.
        seed: of the examples.
    """

    num_steps: int
    learning_rate: float
    seed: int
    batch_size: int = 64
    num_warmup_steps: int = 50

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        warmup = min(1.0, (step + 1) / self.num_warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.num_steps))
        return self.learning_rate * warmup * (0.05 + 0.95 * cosine)


def train(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    draw: Callable[[random.Random], Example],
    schedule: Schedule,
    *,
    label: str,
) -> None:
    """Train the parameters that require a gradient, in place.

    Args:
        model: takes input_ids and labels, both (batch, tokens) int64, and returns an object with
            `loss`.
        tokenizer: the demo's.
        draw: one example from the given generator.
        schedule: see `Schedule`.
        label: what the log lines call this training.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.01)
    rng = random.Random(schedule.seed)
    model.train()
    for step in range(schedule.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        examples = [draw(rng) for _ in range(schedule.batch_size)]
        input_ids, labels = collate(tokenizer, examples)
        loss = model(input_ids=input_ids, labels=labels, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % _LOG_EVERY == 0 or step == schedule.num_steps - 1:
            logger.info("%s: step %d, loss %.4f", label, step, loss.item())
    model.eval()


def collate(
    tokenizer: PreTrainedTokenizerBase, examples: Iterable[Example]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-pad a batch; attention is causal, so that padding on the right needs no mask.

    Returns:
        input_ids and labels, both (batch, longest) int64; labels are `IGNORED_LABEL` where nothing
        is learnt.
    """
    end = tokenizer.eos_token_id
    rows, targets = [], []
    for example in examples:
        prompt = tokenizer(example.prompt).input_ids
        answer = [*tokenizer(example.answer).input_ids, end]
        rows.append(torch.tensor(prompt + answer))
        ignored = [] if example.learn_prompt else [IGNORED_LABEL] * len(prompt)
        targets.append(torch.tensor(ignored + (prompt if example.learn_prompt else []) + answer))
    pad = nn.utils.rnn.pad_sequence
    return (
        pad(rows, batch_first=True, padding_value=end),
        pad(targets, batch_first=True, padding_value=IGNORED_LABEL),
    )
