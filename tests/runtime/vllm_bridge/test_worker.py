"""What the worker does when its model is there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from shadow_runtime.errors import UnsupportedStackError
from shadow_runtime.vllm_bridge import worker as worker_module
from shadow_runtime.vllm_bridge.residency import AdapterResidency


@pytest.fixture
def load(library: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return `load(executor)`, which gives a model runner a model with that executor."""
    hf_config = AutoConfig.from_pretrained(library.base_dir)
    vllm_config = SimpleNamespace(model_config=SimpleNamespace(hf_config=hf_config))

    def run(executor: Any) -> SimpleNamespace:
        runner, model = SimpleNamespace(), SimpleNamespace(shadow=executor)
        monkeypatch.setattr(
            worker_module, "ShadowExecutor", SimpleNamespace if executor is None else type(executor)
        )
        assert (
            worker_module._load_shadow_model(runner, model, vllm_config, torch.device("cpu"))
            is model
        )
        return runner

    return run


def test_kernels_are_compiled_before_the_residency_is_there(
    load: Any, make_config: Any, make_executor: Any
) -> None:
    executor, calls = make_executor(make_config()), []
    executor.backbone = SimpleNamespace(compile_ahead=lambda: calls.append("compiled"))
    assert isinstance(load(executor).lora_manager, AdapterResidency)
    assert calls == ["compiled"]


def test_a_later_pipeline_stage_has_nothing_to_compile(
    load: Any, make_config: Any, make_executor: Any
) -> None:
    executor = make_executor(make_config())
    executor.backbone = None
    assert isinstance(load(executor).lora_manager, AdapterResidency)


def test_a_model_without_the_shadow_path_is_refused(load: Any) -> None:
    with pytest.raises(UnsupportedStackError, match="VLLM_PLUGINS"):
        load(None)


@pytest.mark.parametrize("is_v2", [False, True])
def test_only_the_v2_model_runner_captures_our_way(make_bare_worker: Any, is_v2: bool) -> None:
    """vLLM's other model runner has no `capture_model(profile_only=...)` to replace."""

    def capture_model() -> int:
        raise AssertionError("nothing is captured while a model is loaded")

    runner = SimpleNamespace(capture_model=capture_model)
    make_bare_worker(runner, is_v2=is_v2).load_model()
    assert (runner.capture_model is not capture_model) is is_v2
