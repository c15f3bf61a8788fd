"""The five demo adapters: built, trained, saved and loaded by the two reference packages.

Between them they cover both checkpoint formats and every way to make a shadow backbone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import peft
import shadow_peft
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from demo_training.sentence import sample_training
from demo_training.task import TASKS
from demo_training.trainer import Example, Schedule, train

BASE_NAME = "shadowserve-demo-base"
"""What the peft adapters record as the name of their base."""

_PAPER_CONFIG_FILE = "shadow_config.json"
_BACKBONE_CONFIG_FILE = "config.json"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one adapter is made.

    Attributes:
        name: of the adapter and of its task.
        kind: paper = paper format, implicit backbone; explicit = paper format around the pretrained
            backbone; peft = peft format, mirror.
        options: fields of the package's own configuration class.
        schedule: of the training.
    """

    name: str
    kind: Literal["paper", "explicit", "peft"]
    options: dict[str, int | float]
    schedule: Schedule


_PAPER = {"injection_hidden_size": 16, "gate_hidden_size": 10, "dropout": 0.0}
_PEFT = {"r": 8, "shadow_dropout": 0.0, "shadow_intermediate_size": 128}

RECIPES: tuple[Recipe, ...] = (
    Recipe(
        "shout",
        "paper",
        _PAPER | {"num_shadow_layers": 1, "shadow_intermediate_size": 128, "alpha": 1.0},
        Schedule(num_steps=500, learning_rate=3e-3, seed=11),
    ),
    Recipe(
        "french",
        "paper",
        _PAPER | {"num_shadow_layers": 2, "shadow_intermediate_size": 64, "alpha": 1.5},
        Schedule(num_steps=500, learning_rate=3e-3, seed=12),
    ),
    Recipe(
        "json",
        "peft",
        _PEFT | {"shadow_alpha": 0.5},
        Schedule(num_steps=300, learning_rate=3e-3, seed=13),
    ),
    Recipe(
        "passive",
        "peft",
        _PEFT | {"shadow_alpha": 1.0, "shadow_hidden_size": 64},
        Schedule(num_steps=300, learning_rate=3e-3, seed=14),
    ),
    Recipe(
        "reverse",
        "explicit",
        _PAPER | {"alpha": 2.0},
        Schedule(num_steps=450, learning_rate=3e-3, seed=15),
    ),
)


def attach(
    recipe: Recipe, base: Qwen3ForCausalLM, backbone: Qwen3ForCausalLM | None = None
) -> nn.Module:
    """Put a fresh, trainable adapter on a base, which is changed in place and frozen.

    Args:
        recipe: what to build.
        base: the pretrained base.
        backbone: the pretrained backbone that an explicit recipe starts from.
    """
    torch.manual_seed(recipe.schedule.seed)
    if recipe.kind == "peft":
        base.name_or_path = BASE_NAME
        config = peft.ShadowConfig(task_type="CAUSAL_LM", **recipe.options)
        return peft.get_peft_model(base, config)
    shadow_config = shadow_peft.ShadowConfig(**recipe.options)
    return shadow_peft.ShadowForCausalLM(
        shadow_peft.get_shadow_model(base, shadow_config, shadow_model=backbone)
    )


def train_adapter(model: nn.Module, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> None:
    """Teach an attached adapter its task, on prompts that do not name it."""
    task = TASKS[recipe.name]

    def draw(rng: random.Random) -> Example:
        sentence = sample_training(rng)
        return Example(sentence.prompt, task(sentence))

    train(model, tokenizer, draw, recipe.schedule, label=recipe.name)


def save_adapter(model: nn.Module, recipe: Recipe, directory: Path) -> None:
    """Save with the package's own `save_pretrained`.

    The configuration of an explicit backbone goes beside it: the checkpoint does not record it.
    """
    if recipe.kind == "peft":
        model.save_pretrained(directory, save_embedding_layers=False)
        (directory / "README.md").unlink(missing_ok=True)  # a model card template, all questions
        return
    model.save_pretrained(directory)
    if recipe.kind == "explicit":
        model.peft_model.shadow_model.config.save_pretrained(directory)


def load_adapter(base: Qwen3ForCausalLM, directory: Path) -> nn.Module:
    """Load a saved adapter with the package that wrote it, for inference.

    Args:
        base: the pretrained base, changed in place.
        directory: of the adapter; the file names tell the format and the kind.
    """
    if not (directory / _PAPER_CONFIG_FILE).exists():
        return peft.PeftModel.from_pretrained(base, str(directory)).eval()
    backbone = None
    if (directory / _BACKBONE_CONFIG_FILE).exists():
        backbone = Qwen3ForCausalLM(Qwen3Config.from_pretrained(directory))
    return shadow_peft.ShadowForCausalLM.from_pretrained(
        base, directory, shadow_model=backbone
    ).eval()
