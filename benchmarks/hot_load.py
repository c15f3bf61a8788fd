"""How long an adapter takes from the page cache to its slot, and what steps notice of it.

    python benchmarks/hot_load.py                           the largest adapter of the shipped demo
    python benchmarks/hot_load.py --model 8b-shape          58 MB adapters of a Qwen3-8B shape, without its weights
    python benchmarks/hot_load.py --base DIR --adapter DIR  any other
    python benchmarks/hot_load.py --checkpoint ...          without the canonical file of the server's store

No engine is started: the worker's own residency (reading, hashing, checking, padding, pinned memory, copy) works on
real slots, and the polling is the one of `EngineControl`. Written out is one JSON object with times in milliseconds:

- `load`: from the first question to the last answer, slot included, over adapters of different bytes. The first ones
  pay for pinned memory that later ones reuse, so `first` shows them apart.
- `call`: how long the step thread was held by one question.
- `step`: a loop of decode-like steps (matrix products whose weights are read once) without, and during, loads.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")  # what the engine's libraries say on import

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoConfig  # noqa: E402

from shadow_runtime.artifact import base_geometry, load_adapter  # noqa: E402
from shadow_runtime.artifact.canonical_file import write_canonical  # noqa: E402
from shadow_runtime.slots.derive import SlotOptions, derive_config  # noqa: E402
from shadow_runtime.slots.layout import ShardPlan  # noqa: E402
from shadow_runtime.slots.stack import AdapterStacks  # noqa: E402
from shadow_runtime.store.budget import CANONICAL_FILE  # noqa: E402
from shadow_runtime.types import AdapterManifest, BaseGeometry  # noqa: E402
from shadow_runtime.vllm_bridge.control import PollDelay  # noqa: E402
from shadow_runtime.vllm_bridge.request import AdapterSource  # noqa: E402
from shadow_runtime.vllm_bridge.residency import AdapterResidency  # noqa: E402

WARM_UP = 2


class Executor:
    """What the residency needs of the worker's model: slots of the adapters' class on the device."""

    def __init__(self, config: Any, base: Any, device: torch.device) -> None:
        self.config = config
        self.hidden_size = base.hidden_size
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.plan = ShardPlan((0, base.num_layers), has_backbone=True)
        with device:
            self.stacks = AdapterStacks(config, self.plan, base.hidden_size, self.dtype)
            self.state = torch.zeros(1, base.hidden_size, dtype=self.dtype)


class Loads:
    """Loads adapters into a residency as the engine's control does, and takes the times."""

    def __init__(self, residency: AdapterResidency) -> None:
        self._residency = residency
        self.calls: list[float] = []

    def load(self, manifest: AdapterManifest) -> float:
        """Return the seconds from page cache to resident."""
        source = AdapterSource.of(manifest)
        started = time.perf_counter()
        self._finish(lambda: self._residency.load(source))
        self._finish(lambda: self._residency.prefetch(manifest.digest))
        return time.perf_counter() - started

    def _finish(self, ask: Callable[[], Any]) -> None:
        delay = PollDelay()
        while (outcome := self._ask(ask)) is None:
            time.sleep(delay.next())
        if outcome is not True:
            raise SystemExit(f"not loaded: {outcome}")

    def _ask(self, ask: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        outcome = ask()
        self.calls.append(time.perf_counter() - started)
        return outcome


class Steps:
    """Decode-like steps of about `layers` matrix products; times of each, measured where it runs."""

    def __init__(self, device: torch.device, width: int, layers: int) -> None:
        self._device = device
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._weights = [
            torch.randn(width, width, device=device, dtype=dtype) for _ in range(layers)
        ]
        self._tokens = torch.randn(8, width, device=device, dtype=dtype)
        self._step()  # loads the libraries
        self._graph: Any = None
        if device.type == "cuda":
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._step()

    def _step(self) -> None:
        hidden = self._tokens
        for weight in self._weights:
            hidden = hidden @ weight

    def run(self, between: Callable[[], bool]) -> list[float]:
        """Return the seconds of every step; `between` runs on the step thread and tells whether to go on."""
        times, is_on = [], True
        while is_on:
            started = time.perf_counter()
            if self._graph is None:
                self._step()
            else:
                self._graph.replay()
                # As an engine does, the host waits for the step's tokens, not for the copy stream.
                torch.cuda.current_stream().synchronize()
            times.append(time.perf_counter() - started)
            is_on = between()
        return times


def main() -> None:
    """Run what the command line asks for and write one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=["8b-shape"])
    parser.add_argument("--base", type=Path, help="directory of the base; its config is enough")
    parser.add_argument("--adapter", type=Path, help="adapter to make variants of")
    parser.add_argument("--loads", type=int, default=24)
    parser.add_argument(
        "--checkpoint",
        action="store_true",
        help="load adapters as they were saved, as an engine without the server's store does",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.base is None or args.adapter is None:
            find = write_8b if args.model == "8b-shape" else find_demo
            args.base, args.adapter = find(Path(folder))
        result = measure(args, Path(folder))
    sys.stdout.write(json.dumps(result) + "\n")


def write_8b(folder: Path) -> tuple[Path, Path]:
    """Write the base's config and one adapter of the published Qwen3-8B shape."""
    from random_adapter import write_adapter
    from shape import write_shape

    base = write_shape("8b", folder / "base", None)
    return base, write_adapter(base, folder / "first", 0)


def find_demo(_: Path) -> tuple[Path, Path]:
    """Return the demo's base and the largest of its adapters."""
    from shadow_server.demo import demo_adapter_paths, demo_model_path

    def num_bytes(directory: Path) -> int:
        return sum(file.stat().st_size for file in directory.glob("*.safetensors"))

    return demo_model_path(), max(map(Path, demo_adapter_paths().values()), key=num_bytes)


def write_variants(adapter: Path, folder: Path, count: int) -> list[Path]:
    """Return directories of adapters with the same shapes and other bytes."""
    (file,) = adapter.glob("*.safetensors")
    tensors = load_file(file)
    largest = max(tensors, key=lambda name: tensors[name].numel())
    variants = []
    for number in range(count):
        directory = folder / f"variant{number}"
        shutil.copytree(adapter, directory)
        tensors[largest].view(-1)[0] = 0.001 * (number + 1)
        save_file(tensors, directory / file.name)
        variants.append(directory)
    return variants


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return all figures."""
    device = torch.device(args.device)
    base = base_geometry(AutoConfig.from_pretrained(args.base))
    variants = write_variants(args.adapter, folder, args.loads + WARM_UP)
    # Reads every file once, so that all of them are in the page cache.
    manifests = [validate(path, base, args.checkpoint) for path in variants]
    options = SlotOptions(max_resident_adapters=8, max_host_adapters=16)
    config = derive_config(base, manifests[:1], options)
    executor: Any = Executor(config, base, device)
    residency = AdapterResidency(executor, base)
    loads = Loads(residency)
    first = [loads.load(manifest) for manifest in manifests[:WARM_UP]]
    times = [_load_and_forget(residency, loads, manifest) for manifest in manifests[WARM_UP:]]
    return {
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.machine(),
        "torch": torch.__version__,
        "adapter_mib": round(manifests[0].tensor_bytes / 2**20, 1),
        "image_mib": round(residency.status()["host_bytes"] / WARM_UP / 2**20, 1),
        "loads": len(times),
        "first_ms": [round(1e3 * seconds, 2) for seconds in first],
        "load_ms": spread(times),
        "call_ms": spread(loads.calls),
    } | measure_steps(residency, manifests[WARM_UP:], device)


def validate(path: Path, base: BaseGeometry, is_bare: bool) -> AdapterManifest:
    """Return an adapter's manifest and leave beside it what the server's validation leaves in its store."""
    adapter = load_adapter(path, base)
    if not is_bare:
        with (path / CANONICAL_FILE).open("wb") as file:
            write_canonical(adapter, file.fileno(), 1 << 40)
    return adapter.manifest


def _load_and_forget(residency: AdapterResidency, loads: Loads, manifest: AdapterManifest) -> float:
    seconds = loads.load(manifest)
    residency.unload(manifest.digest)
    return seconds


def measure_steps(
    residency: AdapterResidency, manifests: list[AdapterManifest], device: torch.device
) -> dict[str, Any]:
    """Return the steps' times without loads, and while one adapter after the other is loaded and placed."""
    is_cuda = device.type == "cuda"
    steps = Steps(device, width=4096 if is_cuda else 768, layers=160 if is_cuda else 16)
    left = iter(range(50 + 20 * len(manifests)))
    alone = steps.run(lambda: next(left, None) is not None)
    loader = iter(manifests)
    state: dict[str, Any] = {"manifest": next(loader), "wait": 0.0, "delay": PollDelay()}

    def between() -> bool:
        # The engine answers a question between two steps, when it is due.
        now = time.perf_counter()
        if now < state["wait"]:
            return True
        manifest = state["manifest"]
        outcome = residency.load(AdapterSource.of(manifest))
        if outcome is True:
            outcome = residency.prefetch(manifest.digest)
        state["wait"] = now + state["delay"].next()
        if outcome is True:
            residency.unload(manifest.digest)
            state["manifest"], state["delay"] = next(loader, None), PollDelay()
        return state["manifest"] is not None

    return {"step_ms": spread(alone), "step_while_loading_ms": spread(steps.run(between))}


def spread(seconds: list[float]) -> dict[str, float]:
    """Return the middle, the tail and the number of some times, in milliseconds."""
    ordered = sorted(seconds)
    tail = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    values = {"p50": statistics.median(ordered), "p99": tail, "max": ordered[-1]}
    return {name: round(1e3 * value, 3) for name, value in values.items()} | {"n": len(ordered)}


if __name__ == "__main__":
    main()
