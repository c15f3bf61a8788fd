"""Tiny adapters on disk, and the parts of a worker that need no engine."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

with warnings.catch_warnings():
    # The engine's libraries warn on import.
    warnings.simplefilter("ignore")
    import shadow_runtime.vllm_bridge.backbone
    import shadow_runtime.vllm_bridge.control
    import shadow_runtime.vllm_bridge.engine_args
    import shadow_runtime.vllm_bridge.residency  # noqa: F401

from transformers import AutoConfig

from reference_adapters import build_adapter, build_base
from shadow_kernels import StepSegments
from shadow_runtime.artifact import base_geometry, load_adapter
from shadow_runtime.config import ShadowConfig
from shadow_runtime.slots.derive import SlotOptions, derive_config
from shadow_runtime.slots.layout import ShardPlan
from shadow_runtime.slots.stack import AdapterStacks
from shadow_runtime.types import AdapterManifest, BaseGeometry

MAX_TOKENS = 64


@dataclass
class Library:
    """A base of four Qwen3 layers and what was written for it.

    Attributes:
        base_dir: the base's checkpoint.
        base: its geometry.
        paths: adapter directories by name.
        manifests: of those adapters.
    """

    base_dir: Path
    base: BaseGeometry
    paths: dict[str, Path] = field(default_factory=dict)
    manifests: dict[str, AdapterManifest] = field(default_factory=dict)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Return five adapters: `a`, `b`, `c`, `d` of one slot class, `own` with embeddings of its own."""
    root = tmp_path_factory.mktemp("library")
    base_dir = build_base("qwen3", root / "base", hidden_size=32, head_dim=16, vocab_size=48)
    made = Library(base_dir, base_geometry(AutoConfig.from_pretrained(base_dir)))
    kinds = dict.fromkeys("abcd", "paper_implicit") | {"own": "paper_explicit"}
    for seed, (name, kind) in enumerate(kinds.items()):
        options = {"backbone": {"head_dim": 16}} if name == "own" else {}
        made.paths[name] = build_adapter(kind, base_dir, root / name, seed=seed, **options)
        made.manifests[name] = load_adapter(made.paths[name], made.base).manifest
    return made


class FakeExecutor:
    """What the residency needs of an executor: real stacks and segments, no model."""

    def __init__(self, config: ShadowConfig, hidden_size: int) -> None:
        self.config = config
        self.hidden_size = hidden_size
        self.dtype = torch.float32
        self.plan = ShardPlan((0, 4), has_backbone=True)
        self.stacks = AdapterStacks(config, self.plan, hidden_size, self.dtype)
        self.state = torch.zeros(MAX_TOKENS, hidden_size)
        self.segments = StepSegments(MAX_TOKENS, config.num_slots, "cpu")
        self.num_steps = 0

    def begin_step(self, token_slots: np.ndarray) -> None:
        """Take a step's slots as the real executor does, checks included."""
        self.segments.fill(token_slots)
        self.segments.check_integrity()
        self.num_steps += 1


@pytest.fixture
def make_config(library: Library) -> Callable[..., ShadowConfig]:
    """Return `make_config(**options)`: two slot classes (`a` to `d`, and `own`) of two slots each."""

    def make(**options: int) -> ShadowConfig:
        wishes = SlotOptions(**({"max_resident_adapters": 2, "max_host_adapters": 4} | options))
        manifests = [library.manifests["a"], library.manifests["own"]]
        return derive_config(library.base, manifests, wishes)

    return make


@pytest.fixture
def make_executor(library: Library) -> Callable[[ShadowConfig], FakeExecutor]:
    """Return `make_executor(config)`."""
    return lambda config: FakeExecutor(config, library.base.hidden_size)
