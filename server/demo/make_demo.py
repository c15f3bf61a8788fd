"""Make the demo's base model and adapters: `python server/demo/make_demo.py --out DIR`.

Writes DIR/base, DIR/backbone, DIR/adapters/<name> and DIR/prompts.json, then loads them back with the
reference packages and logs how many held-out prompts each adapter answers to the letter. What DIR
holds already is kept, so that a run continues where it was interrupted and a finished DIR is only
measured. Fixed seeds; about ten minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import torch
from demo_training.adapter import RECIPES, attach, load_adapter, save_adapter, train_adapter
from demo_training.base import (
    MAX_POSITIONS,
    backbone_config,
    base_config,
    build_model,
    draw_pretraining,
)
from demo_training.evaluation import accuracy, held_out_sentences
from demo_training.sentence import DEMO_SENTENCES, parse
from demo_training.task import TASKS
from demo_training.tokenizer import save_tokenizer
from demo_training.trainer import Schedule, train
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

logger = logging.getLogger("make_demo")

_BASE_SCHEDULE = Schedule(num_steps=1200, learning_rate=3e-3, seed=2)
_BACKBONE_SCHEDULE = Schedule(num_steps=600, learning_rate=5e-3, seed=2)
_WEIGHT_SEED = 1
_NUM_HELD_OUT = 200


def main() -> None:
    """Parse the arguments, make what is missing, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory to write into")
    parser.add_argument(
        "--adapters",
        nargs="*",
        choices=sorted(TASKS),
        default=list(TASKS),
        help="which adapters to make and to measure; all of them unless told",
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # One thread sums in a fixed order: a run can be repeated bit for bit on the same machine.
    torch.set_num_threads(1)
    make(arguments.out, arguments.adapters)
    report(arguments.out, arguments.adapters)


def make(out: Path, adapter_names: list[str]) -> None:
    """Train what `out` does not hold yet: the base, the explicit backbone, the adapters."""
    tokenizer = save_tokenizer(out / "base", max_length=MAX_POSITIONS)
    _pretrain(out / "base", base_config(tokenizer), _BASE_SCHEDULE, tokenizer)
    missing = [name for name in adapter_names if not (out / "adapters" / name).exists()]
    for recipe in (recipe for recipe in RECIPES if recipe.name in missing):
        backbone = None
        if recipe.kind == "explicit":
            config = backbone_config(tokenizer)
            _pretrain(out / "backbone", config, _BACKBONE_SCHEDULE, tokenizer)
            backbone = _load(out / "backbone")
        model = attach(recipe, _load(out / "base"), backbone)
        train_adapter(model, tokenizer, recipe)
        save_adapter(model, recipe, out / "adapters" / recipe.name)
    write_prompts(out / "prompts.json")


def write_prompts(path: Path) -> None:
    """Write the demo's prompts, each with the answer that every adapter must give."""
    sentences = [parse(text) for text in DEMO_SENTENCES]
    prompts = [
        {
            "prompt": sentence.prompt,
            "expected": {name: task(sentence) for name, task in TASKS.items()},
        }
        for sentence in sentences
    ]
    path.write_text(json.dumps(prompts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def report(out: Path, adapter_names: list[str]) -> None:
    """Log the share of held-out prompts answered to the letter, by each adapter and by the base."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(out / "base")
    sentences = held_out_sentences(_NUM_HELD_OUT)
    prompts = [sentence.prompt for sentence in sentences]
    logger.info("held-out prompts answered to the letter, of %d (greedy, fp32):", len(prompts))
    for name in adapter_names:
        adapter = load_adapter(_load(out / "base"), out / "adapters" / name)
        by_adapter = accuracy(adapter, tokenizer, TASKS[name], sentences, prompts)
        by_base = accuracy(_load(out / "base"), tokenizer, TASKS[name], sentences, prompts)
        logger.info("%-8s adapter %6.1f%%   base %6.1f%%", name, 100 * by_adapter, 100 * by_base)


def _pretrain(
    directory: Path,
    config: Qwen3Config,
    schedule: Schedule,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    if (directory / "model.safetensors").exists():
        return
    model = build_model(config, seed=_WEIGHT_SEED)
    train(model, tokenizer, draw_pretraining, schedule, label=directory.name)
    model.save_pretrained(directory)


def _load(directory: Path) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM.from_pretrained(directory).eval()


if __name__ == "__main__":
    main()
