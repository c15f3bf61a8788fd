"""What vLLM is told of our model classes before anybody imports them."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.model_executor.models.registry import ModelRegistry, _LazyRegisteredModel, _ModelInfo

from shadow_runtime import plugin
from shadow_runtime.errors import UnsupportedStackError
from shadow_runtime.vllm_bridge import model_registration, models
from shadow_runtime.vllm_bridge.architecture import ARCHITECTURES
from shadow_runtime.vllm_bridge.model_registration import TextDecoder, register_text_decoder


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelRegistry, "models", dict(ModelRegistry.models))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_vllm_is_told_is_what_it_would_find(name: str) -> None:
    register_text_decoder(name)
    found = _ModelInfo.from_model_cls(models.shadowize(name))
    assert ModelRegistry.models[name].inspect_model_cls() == found
    assert found.architecture == f"Shadow{name}"
    assert found.supports_pp
    assert ModelRegistry.models[name].load_model_cls() is getattr(models, f"Shadow{name}")


def test_nobody_imports_a_model_to_say_it() -> None:
    program = """
import json, sys
from types import SimpleNamespace
from unittest import mock
from vllm.model_executor.models import registry
from shadow_runtime.plugin import register
register()
names = ["Qwen3ForCausalLM"]
config = SimpleNamespace(model_impl="auto", convert_type="none", runner_type="generate", hf_config=None)
with mock.patch.object(registry, "_run_in_subprocess", side_effect=AssertionError):
    info, name = registry.ModelRegistry.inspect_model_cls(names, config)
print(json.dumps([info.architecture, name, [m for m in sys.modules if m.endswith("qwen3")]]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == ["ShadowQwen3ForCausalLM", "Qwen3ForCausalLM", []]


def test_every_architecture_is_registered_and_no_other() -> None:
    before = dict(ModelRegistry.models)
    plugin.register()
    changed = {name for name, model in ModelRegistry.models.items() if model != before.get(name)}
    assert changed <= set(ARCHITECTURES)
    assert all(isinstance(ModelRegistry.models[name], TextDecoder) for name in ARCHITECTURES)


def test_a_class_that_is_something_else_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model_registration._TEXT_DECODER, "supports_pp", False)
    register_text_decoder("Qwen3ForCausalLM")
    with pytest.raises(UnsupportedStackError, match="supports_pp is True, not False"):
        ModelRegistry.models["Qwen3ForCausalLM"].load_model_cls()


def test_a_vllm_that_asks_something_else_finds_out_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    answer: Any = SimpleNamespace()
    monkeypatch.setattr(_LazyRegisteredModel, "inspect_model_cls", lambda self: answer)
    model = TextDecoder("shadow_runtime.vllm_bridge.models", "ShadowQwen3ForCausalLM")
    assert model.inspect_model_cls() is not answer
    monkeypatch.setattr(model_registration, "_NAMES", {*model_registration._NAMES, "is_new"})
    assert model.inspect_model_cls() is answer
