"""Make the demo's base model and adapters: `python server/demo/make_demo.py --out DIR`.

Writes DIR/base, DIR/adapters/<name> and DIR/prompts.json, then loads them back with the reference
packages and logs how many held-out prompts each adapter answers to the letter. Fixed seeds; about
fifteen minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
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
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3ForCausalLM

logger = logging.getLogger("make_demo")

_BASE_SCHEDULE = Schedule(num_steps=1200, learning_rate=3e-3, seed=2)
_BACKBONE_SCHEDULE = Schedule(num_steps=600, learning_rate=5e-3, seed=4)
_NUM_HELD_OUT = 200


def main() -> None:
    """Parse the arguments, make everything, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory to write into")
    parser.add_argument(
        "--only-evaluate", action="store_true", help="measure what DIR holds, make nothing"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # One thread sums in a fixed order: a run can be repeated bit for bit on the same machine.
    torch.set_num_threads(1)
    if not arguments.only_evaluate:
        make(arguments.out)
    report(arguments.out)


def make(out: Path) -> None:
    """Train everything and write it under `out`, replacing what an earlier run left there."""
    for name in ("base", "adapters"):
        shutil.rmtree(out / name, ignore_errors=True)
    tokenizer = save_tokenizer(out / "base", max_length=MAX_POSITIONS)
    base = build_model(base_config(tokenizer), seed=1)
    train(base, tokenizer, draw_pretraining, _BASE_SCHEDULE, label="base")
    base.save_pretrained(out / "base")
    backbone = build_model(backbone_config(tokenizer), seed=3)
    train(backbone, tokenizer, draw_pretraining, _BACKBONE_SCHEDULE, label="backbone")
    for recipe in RECIPES:
        model = attach(recipe, _load_base(out), backbone if recipe.kind == "explicit" else None)
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


def report(out: Path) -> None:
    """Log the share of held-out prompts answered to the letter, by each adapter and by the base."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(out / "base")
    sentences = held_out_sentences(_NUM_HELD_OUT)
    prompts = [sentence.prompt for sentence in sentences]
    logger.info("held-out prompts answered to the letter, of %d (greedy, fp32):", len(prompts))
    for name, task in TASKS.items():
        adapter = load_adapter(_load_base(out), out / "adapters" / name)
        by_adapter = accuracy(adapter, tokenizer, task, sentences, prompts)
        by_base = accuracy(_load_base(out), tokenizer, task, sentences, prompts)
        logger.info("%-8s adapter %6.1f%%   base %6.1f%%", name, 100 * by_adapter, 100 * by_base)


def _load_base(out: Path) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM.from_pretrained(out / "base").eval()


if __name__ == "__main__":
    main()
