"""The demo's language models: the base, and the small pretrained backbone of the explicit adapter.

Both read the same text. Two thirds of it are tasks whose prompt names the task, the rest is
stories. So the bare base has seen every task, but tells a story when the prompt names none; each
adapter makes it do one task.
"""

from __future__ import annotations

import random

import torch
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from demo_training.sentence import sample_training
from demo_training.task import TASKS, story, tagged_prompt
from demo_training.trainer import Example

HEAD_DIM = 32
NUM_KV_HEADS = 2
MAX_POSITIONS = 2048

_STORY_SHARE = 0.3


def base_config(tokenizer: PreTrainedTokenizerBase) -> Qwen3Config:
    """Geometry of the base: 4 layers of width 128."""
    return _config(tokenizer, hidden_size=128, intermediate_size=384, num_layers=4, num_heads=4)


def backbone_config(tokenizer: PreTrainedTokenizerBase) -> Qwen3Config:
    """Geometry of the explicit backbone: 2 layers of width 64, with the base's key-value heads."""
    return _config(tokenizer, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4)


def build_model(config: Qwen3Config, *, seed: int) -> Qwen3ForCausalLM:
    """Random initial weights from a seed, fp32."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(config)


def draw_pretraining(rng: random.Random) -> Example:
    """One document of the pretraining text: a story, or a task with its name in the prompt."""
    sentence = sample_training(rng)
    if rng.random() < _STORY_SHARE:
        return Example(sentence.prompt, story(sentence, rng), learn_prompt=True)
    name = rng.choice(list(TASKS))
    return Example(tagged_prompt(sentence, name), TASKS[name](sentence))


def _config(
    tokenizer: PreTrainedTokenizerBase,
    *,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    num_heads: int,
) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
