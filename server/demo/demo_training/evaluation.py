"""Greedy answers without a cache, and how many of them are right to the letter."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from demo_training.sentence import Sentence, sample_held_out
from demo_training.task import Task

_HELD_OUT_SEED = 777


def held_out_sentences(num_sentences: int) -> list[Sentence]:
    """Distinct seeded sentences that no training saw."""
    rng = random.Random(_HELD_OUT_SEED)
    found: dict[str, Sentence] = {}
    while len(found) < num_sentences:
        sentence = sample_held_out(rng)
        found.setdefault(sentence.text, sentence)
    return list(found.values())


@torch.inference_mode()
def greedy_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 48,
) -> list[str]:
    """Answer every prompt greedily, recomputing the whole sequence for every token.

    Args:
        model: takes input_ids (batch, tokens) int64 and returns an object with `logits`.
        tokenizer: the demo's.
        prompts: any texts; those of equal length in tokens run as one batch.
        max_new_tokens: where an answer that does not end is cut.

    Returns:
        The answers in the order of the prompts, without the end token.
    """
    encoded = [tokenizer(prompt).input_ids for prompt in prompts]
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, ids in enumerate(encoded):
        by_length[len(ids)].append(index)
    answers = [""] * len(prompts)
    for length, indices in by_length.items():
        rows = _continue(
            model, torch.tensor([encoded[i] for i in indices]), tokenizer, max_new_tokens
        )
        for index, row in zip(indices, rows[:, length:].tolist(), strict=True):
            answers[index] = tokenizer.decode(_until_end(row, tokenizer.eos_token_id))
    return answers


def accuracy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    sentences: Sequence[Sentence],
    prompts: Sequence[str],
) -> float:
    """Share of the answers that equal the task's, to the letter. In [0, 1]."""
    answers = greedy_answers(model, tokenizer, prompts)
    expected = [task(sentence) for sentence in sentences]
    return sum(a == b for a, b in zip(answers, expected, strict=True)) / len(expected)


def _continue(
    model: nn.Module,
    input_ids: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
) -> torch.Tensor:
    end = tokenizer.eos_token_id
    ended = torch.zeros(len(input_ids), dtype=torch.bool)
    for _ in range(max_new_tokens):
        logits = model(input_ids=input_ids, use_cache=False).logits[:, -1]
        chosen = logits.argmax(-1).masked_fill(ended, end)
        ended |= chosen == end
        input_ids = torch.cat([input_ids, chosen[:, None]], dim=1)
        if ended.all():
            break
    return input_ids


def _until_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
