"""Where the shipped demo files lie and what they say.

Runs in: API process. Reads files only; imports neither torch nor vllm.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

_ASSETS = Path(__file__).resolve().parent / "assets"


@dataclass(frozen=True, slots=True)
class DemoPrompt:
    """A prompt that no model of the demo was trained on.

    Attributes:
        prompt: text for `/v1/completions`.
        expected: adapter name to the exact greedy completion, with its leading space and without
            the end token.
    """

    prompt: str
    expected: dict[str, str]


def demo_model_path() -> Path:
    """Directory of the base model: a Hugging Face checkpoint with its tokenizer."""
    return _ASSETS / "base"


def demo_adapter_paths() -> dict[str, Path]:
    """Adapter name to its `save_pretrained` directory, in the order that the demo shows."""
    return {name: _ASSETS / "adapters" / name for name in demo_prompts()[0].expected}


def demo_prompts() -> list[DemoPrompt]:
    """The held-out prompts of the demo, each with the expected answer of every adapter."""
    entries = json.loads((_ASSETS / "prompts.json").read_text(encoding="utf-8"))
    return [DemoPrompt(entry["prompt"], entry["expected"]) for entry in entries]
