"""Which batches are run and captured, seen in vLLM's own managers without a device."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from vllm.config import CUDAGraphMode
from vllm.v1.worker.gpu import cudagraph_utils
from vllm.v1.worker.gpu.cudagraph_utils import (
    BatchExecutionDescriptor,
    CudaGraphManager,
    ModelCudaGraphManager,
)

from shadow_runtime.vllm_bridge.graph_capture import WarmModelCudaGraphManager, replace_capture

NONE, PIECEWISE, FULL = CUDAGraphMode.NONE, CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL
SIZES = (8, 4, 2)
MOST = 5
GRAPH_BYTES, PIECES_BYTES = 1000, 70


def of(mode: CUDAGraphMode, num_tokens: int, adapters: int, **kwargs: Any) -> Any:
    return BatchExecutionDescriptor(mode, num_tokens, None, num_active_loras=adapters, **kwargs)


class Recorder:
    """Stands for the model: remembers what was run, what was captured and what memory it took."""

    def __init__(self) -> None:
        self.runs: list[tuple[BatchExecutionDescriptor, CUDAGraphMode, bool]] = []
        self.capturing: list[str] = []
        self.free = 10**9

    def create(self, desc: BatchExecutionDescriptor, warmup: bool) -> Any:
        def forward(mode: CUDAGraphMode) -> None:
            is_captured = bool(self.capturing) or mode == PIECEWISE
            assert is_captured or warmup
            self.runs.append((desc, mode, is_captured))
            if is_captured:
                self.free -= PIECES_BYTES if mode == PIECEWISE else GRAPH_BYTES

        return forward

    def begin(self, *_: Any, **__: Any) -> Any:
        context = mock.MagicMock()
        context.__enter__.side_effect = lambda *_: self.capturing.append("graph")
        context.__exit__.side_effect = lambda *_: self.capturing.pop() and None
        return context

    def captured(self) -> list[BatchExecutionDescriptor]:
        return [desc for desc, _, is_captured in self.runs if is_captured]

    def warmed(self) -> list[BatchExecutionDescriptor]:
        return [desc for desc, _, is_captured in self.runs if not is_captured]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    for name in ("graph_capture", "capture_pool"):
        monkeypatch.setattr(cudagraph_utils, name, lambda *_, **__: nullcontext())
    monkeypatch.setattr(cudagraph_utils, "get_offloader", mock.MagicMock())
    monkeypatch.setattr(cudagraph_utils, "is_global_first_rank", lambda: False)
    monkeypatch.setattr(cudagraph_utils, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", mock.MagicMock())
    monkeypatch.setattr(torch.cuda, "graph", recorder.begin)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda: (recorder.free, 0))
    return recorder


@pytest.fixture
def runner(recorder: Recorder) -> Any:
    """Return a runner whose `capture_model` is replaced; vLLM's own would call what is called here."""
    manager = ModelCudaGraphManager.__new__(ModelCudaGraphManager)
    cases = [0, MOST]
    manager.__dict__.update(
        device=None, ubatch_runner=None, use_breakable_cg=False, pool=None, vllm_config=None,
        graphs={}, lora_capture_cases=cases, _max_full_descs_to_capture=None,
        _capture_mem_samples=None, _graphs_captured=False,
        _capture_descs={
            mode: [of(mode, size, case) for size in SIZES for case in cases]
            for mode in (PIECEWISE, FULL)
        },
    )  # fmt: skip
    runner: Any = SimpleNamespace(cudagraph_manager=manager)

    def capture_model(*, profile_only: bool = False) -> int:
        free = recorder.free
        owner = type(manager)
        # What stands behind the model's manager in its class, as its `super().capture` finds it.
        base = owner.__mro__[owner.__mro__.index(ModelCudaGraphManager) + 1]
        base.capture(manager, recorder.create)
        return free - recorder.free

    runner.capture_model = capture_model
    replace_capture(runner)
    return runner


def all_descs() -> set[BatchExecutionDescriptor]:
    return {of(mode, n, case) for mode in (PIECEWISE, FULL) for n in SIZES for case in (0, MOST)}


def test_every_graph_is_captured_and_every_size_warmed_up_once(
    runner: Any, recorder: Recorder
) -> None:
    assert runner.capture_model() == 6 * GRAPH_BYTES + 6 * PIECES_BYTES
    assert len(recorder.captured()) == len(all_descs())
    assert set(recorder.captured()) == all_descs()
    assert set(runner.cudagraph_manager.graphs) == {d for d in all_descs() if d.cg_mode == FULL}
    for mode in (PIECEWISE, FULL):
        warmed = [
            (d.num_tokens, d.num_active_loras) for d in recorder.warmed() if d.cg_mode == mode
        ]
        # The largest size in both kinds, every other with adapters.
        assert warmed == [(8, MOST), (8, 0), (4, MOST), (2, MOST)]


def test_a_size_is_warm_before_it_is_captured(runner: Any, recorder: Recorder) -> None:
    runner.capture_model()
    warm: set[tuple[CUDAGraphMode, int]] = set()
    for desc, _, is_captured in recorder.runs:
        size = (desc.cg_mode, desc.num_tokens)
        if is_captured:
            assert size in warm
        else:
            warm.add(size)


def test_graphs_of_half_batches_are_always_warmed_up(runner: Any, recorder: Recorder) -> None:
    descs = [of(FULL, size, case, num_ubatches=2) for size in (8, 4) for case in (0, MOST)]
    runner.cudagraph_manager._capture_descs = {FULL: descs}
    runner.cudagraph_manager.ubatch_runner = mock.MagicMock()
    runner.capture_model()
    assert len(recorder.warmed()) == 4


def test_the_profile_captures_one_kind_and_counts_both(runner: Any, recorder: Recorder) -> None:
    manager = runner.cudagraph_manager
    manager._max_full_descs_to_capture, manager._capture_mem_samples = 2, []
    before = manager._capture_descs
    num_bytes = runner.capture_model(profile_only=True)
    # As many bytes as capturing all pieces and two graphs of whole steps would have taken.
    assert num_bytes == 6 * PIECES_BYTES + 2 * GRAPH_BYTES
    assert {desc.num_active_loras for desc in recorder.captured()} == {MOST}
    assert len(recorder.captured()) == 3 + 2
    # vLLM reckons with the number of all of them behind that.
    assert manager._capture_descs is before
    assert {desc for descs in before.values() for desc in descs} == all_descs()


def test_a_failed_profile_leaves_the_graphs_known(runner: Any) -> None:
    manager = runner.cudagraph_manager
    before = manager._capture_descs
    failure = RuntimeError("out of memory")
    with (
        mock.patch.object(CudaGraphManager, "capture", side_effect=failure),
        pytest.raises(RuntimeError, match="out of memory"),
    ):
        runner.capture_model(profile_only=True)
    assert manager._capture_descs is before


def test_the_models_manager_finds_ours_behind_it() -> None:
    order = WarmModelCudaGraphManager.__mro__
    ours = order[order.index(ModelCudaGraphManager) + 1]
    assert ours.__module__ == "shadow_runtime.vllm_bridge.graph_capture"
    assert order[order.index(ours) + 1] is CudaGraphManager
