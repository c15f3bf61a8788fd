"""Tiny adapters on disk, and the parts of a worker that need no engine."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

with warnings.catch_warnings():
    # The engine's libraries warn on import.
    warnings.simplefilter("ignore")
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.request import LoRARequest

    import shadow_runtime.vllm_bridge.backbone
    import shadow_runtime.vllm_bridge.control
    import shadow_runtime.vllm_bridge.engine_args  # noqa: F401
    from shadow_runtime.vllm_bridge import worker as worker_module
    from shadow_runtime.vllm_bridge.request import AdapterSource, build_request
    from shadow_runtime.vllm_bridge.residency import AdapterResidency
    from shadow_runtime.vllm_bridge.worker import ShadowWorker

from transformers import AutoConfig

from reference_adapters import build_adapter, build_base
from shadow_kernels import StepSegments
from shadow_runtime.artifact import base_geometry, load_adapter
from shadow_runtime.config import ShadowConfig
from shadow_runtime.slots.derive import SlotOptions, derive_config
from shadow_runtime.slots.layout import ShardPlan
from shadow_runtime.slots.stack import AdapterStacks
from shadow_runtime.types import NO_ADAPTER, AdapterManifest, BaseGeometry

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
    _tensors: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    def canonical(self, name: str) -> dict[str, torch.Tensor]:
        """Return an adapter's canonical tensors, read once."""
        if name not in self._tensors:
            self._tensors[name] = load_adapter(self.paths[name], self.base).tensors
        return self._tensors[name]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Return five adapters: `a`, `b`, `c`, `d` of one slot class, `own` with its own embeddings and a projection."""
    root = tmp_path_factory.mktemp("library")
    base_dir = build_base("qwen3", root / "base", hidden_size=32, head_dim=16, vocab_size=48)
    made = Library(base_dir, base_geometry(AutoConfig.from_pretrained(base_dir)))
    kinds = dict.fromkeys("abcd", "paper_implicit") | {"own": "paper_explicit"}
    for seed, (name, kind) in enumerate(kinds.items()):
        options = {"backbone": {"head_dim": 16, "hidden_size": 48}} if name == "own" else {}
        made.paths[name] = build_adapter(kind, base_dir, root / name, seed=seed, **options)
        made.manifests[name] = load_adapter(made.paths[name], made.base).manifest
    return made


@pytest.fixture
def make_bare_worker(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ShadowWorker]:
    """Return `make(runner, additional_config=None, is_v2=False)`: a worker whose platform loads no model."""
    monkeypatch.setattr(worker_module._PlatformWorker, "load_model", lambda *_, **__: None)

    def make(
        runner: Any, additional_config: dict[str, Any] | None = None, *, is_v2: bool = False
    ) -> ShadowWorker:
        worker = object.__new__(ShadowWorker)
        worker.vllm_config = SimpleNamespace(
            additional_config=additional_config, compilation_config=None
        )
        worker.device, worker.model_runner = torch.device("cpu"), runner
        worker.use_v2_model_runner = is_v2
        return worker

    return make


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
        defaults = {"max_resident_adapters": 2, "max_host_adapters": 4, "max_pinned_adapters": 0}
        wishes = SlotOptions(**(defaults | options))
        manifests = [library.manifests["a"], library.manifests["own"]]
        return derive_config(library.base, manifests, wishes)

    return make


@pytest.fixture
def make_executor(library: Library) -> Callable[[ShadowConfig], FakeExecutor]:
    """Return `make_executor(config)`."""
    return lambda config: FakeExecutor(config, library.base.hidden_size)


class Worker:
    """A residency over a fake executor, driven as vLLM drives it."""

    def __init__(self, library: Any, executor: Any) -> None:
        self.library = library
        self.executor = executor
        self.residency = AdapterResidency(executor, library.base)

    def request(self, name: str, adapter: str | None = None) -> LoRARequest:
        """Return vLLM's request of an adapter under a name."""
        return build_request(name, self.library.manifests[adapter or name])

    def id_of(self, adapter: str) -> int:
        return self.request(adapter).lora_int_id

    def digest_of(self, adapter: str) -> str:
        return self.library.manifests[adapter].digest

    def add(self, *adapters: str) -> None:
        for adapter in adapters:
            assert self.residency.add_adapter(self.request(adapter))
        self.residency.check_integrity()

    def step(self, tokens: list[str | None], named: set[str] | None = None) -> list[int]:
        """Run a step whose tokens have these adapters; returns each token's slot."""
        named = {t for t in tokens if t is not None} if named is None else named
        ids = tuple(0 if t is None else self.id_of(t) for t in tokens)
        mapping = LoRAMapping(ids, ids, is_prefill=True)
        self.residency.set_active_adapters({self.request(n) for n in named}, mapping)
        self.residency.check_integrity()
        return self.slots(len(tokens))

    def slots(self, num_tokens: int) -> list[int]:
        slots = self.executor.segments.adapter_slots
        assert (slots[num_tokens:] == NO_ADAPTER).all()
        return slots[:num_tokens].tolist()

    def resident(self) -> dict[str, int]:
        """Return adapter to slot."""
        names = {self.digest_of(n): n for n in self.library.manifests}
        return {names[d]: s for d, s in self.residency.status()["resident"].items()}

    def snapshot(self) -> tuple[Any, ...]:
        """Return everything that a failed operation must leave as it was."""
        slots = self.executor.segments.adapter_slots.clone().tolist()
        buffers = [b.clone() for b in self.executor.stacks.buffers()]
        state = (self.residency.status(), self.residency.list_adapters(), slots)
        return (*state, self.executor.num_steps, buffers)

    def stage(self, adapter: str) -> None:
        """Begin to load an adapter and wait for the loader thread, but do not ask again."""
        source = AdapterSource.of(self.library.manifests[adapter])
        assert self.residency.load(source) is None
        self.wait_until_read(adapter)

    def wait_until_read(self, adapter: str) -> None:
        """Wait for the loader threads, without asking the residency."""
        future = self.residency._loader._staged.get(self.digest_of(adapter))
        wait([] if future is None else [future], timeout=30)

    def staged(self) -> frozenset[str]:
        """Return the digests that are being or have been read and are not held yet."""
        return self.residency._loader.staged

    def load(self, adapter: str) -> Any:
        """Ask for an adapter until it is held or refused; returns the last answer."""
        source = AdapterSource.of(self.library.manifests[adapter])
        while (outcome := self.residency.load(source)) is None:
            self.wait_until_read(adapter)
        self.residency.check_integrity()
        return outcome

    def settle(self) -> None:
        """Wait for the copies into slots that are under way."""
        fills = self.residency._slots._fills.values()
        wait([fill.copy._copy for fill in fills], timeout=30)
        self.residency.status()
        self.residency.check_integrity()

    def assert_unchanged(self, before: tuple[Any, ...]) -> None:
        """Compare with an earlier `snapshot`."""
        after = self.snapshot()
        assert after[:-1] == before[:-1]
        assert all(torch.equal(a, b) for a, b in zip(after[-1], before[-1], strict=True))
        self.residency.check_integrity()

    def assert_holds(self, slot: int, name: str) -> None:
        """Check two tensors of a slot that differ between all adapters."""
        tensors = self.library.canonical(name)
        depth, rank, width = tensors["boundary.up"].shape
        up = self.executor.stacks.boundary["up"][slot]
        assert torch.equal(up[:depth, :rank, :width], tensors["boundary.up"])
        first = self.executor.config.first_slot(1)
        stack = self.executor.stacks.backbones[int(slot >= first)]
        local = slot - first if slot >= first else slot
        assert torch.equal(stack["norm.weight"][local], tensors["backbone.norm.weight"])


@pytest.fixture
def make_worker(
    library: Any, make_config: Callable[..., ShadowConfig], make_executor: Callable[..., Any]
) -> Callable[..., Worker]:
    """Return `make_worker(**options)`: two slots for `a` to `d`, two for `own`, four places in host memory."""
    return lambda **options: Worker(library, make_executor(make_config(**options)))


@pytest.fixture
def worker(make_worker: Callable[..., Worker]) -> Worker:
    """Return a worker with the default sizes."""
    return make_worker()
