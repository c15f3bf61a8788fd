"""Kernels compile while the model is profiled, and are there when that ends."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shadow_runtime.vllm_bridge.background_compile import compile_behind_profile

CUDA = torch.device("cuda", 1)
_LIMIT_S = 30


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.device, int]]:
    """Return the devices that were made current, and in which threads."""
    devices: list[tuple[torch.device, int]] = []

    def enter(device: torch.device) -> Any:
        devices.append((device, threading.get_ident()))
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "device", enter)
    return devices


def test_the_profile_runs_meanwhile_and_waits_at_its_end(
    entered: list[tuple[torch.device, int]],
) -> None:
    is_profiling, calls, threads = threading.Event(), [], []

    def compile_ahead() -> None:
        # Ends only when the profile runs at the same time.
        assert is_profiling.wait(_LIMIT_S)
        threads.append(threading.get_ident())
        calls.append("compiled")

    def profile_run(randomize_inputs: bool = False) -> None:
        assert randomize_inputs
        is_profiling.set()

    runner: Any = SimpleNamespace(profile_run=profile_run)
    compile_behind_profile(runner, SimpleNamespace(compile_ahead=compile_ahead), CUDA)  # type: ignore[arg-type]
    assert calls == []
    runner.profile_run(randomize_inputs=True)
    assert calls == ["compiled"]
    assert entered == [(CUDA, threads[0])]
    assert threads[0] != threading.get_ident()
    runner.profile_run(randomize_inputs=True)
    assert calls == ["compiled"]


@pytest.mark.usefixtures("entered")
def test_what_does_not_compile_ends_the_start() -> None:
    def compile_ahead() -> None:
        raise RuntimeError("no such architecture")

    profiled: list[bool] = []
    runner: Any = SimpleNamespace(profile_run=lambda: profiled.append(True))
    compile_behind_profile(runner, SimpleNamespace(compile_ahead=compile_ahead), CUDA)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no such architecture"):
        runner.profile_run()
    assert profiled == [True]


def test_elsewhere_it_is_done_at_once(entered: list[tuple[torch.device, int]]) -> None:
    calls: list[int] = []
    backbone: Any = SimpleNamespace(compile_ahead=lambda: calls.append(threading.get_ident()))
    # Not even a profile run is asked for: vLLM's CPU runner skips it when adapters are on.
    compile_behind_profile(SimpleNamespace(), backbone, torch.device("cpu"))
    assert calls == [threading.get_ident()]
    assert entered == []
