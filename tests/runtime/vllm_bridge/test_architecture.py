"""A base without a shadow path is refused by name, with what is supported."""

from __future__ import annotations

import importlib

import pytest
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from shadow_runtime.artifact import FAMILIES
from shadow_runtime.errors import UnsupportedStackError
from shadow_runtime.vllm_bridge.architecture import ARCHITECTURES, check_architectures


def test_supported_architectures_pass() -> None:
    for name in ARCHITECTURES:
        check_architectures([name])
    check_architectures(["Unknown", "LlamaForCausalLM"])


@pytest.mark.parametrize(
    ("names", "shown"), [(["OPTForCausalLM", "X"], "OPTForCausalLM, X"), ([], "unknown")]
)
def test_a_refusal_lists_what_is_supported(names: list[str], shown: str) -> None:
    with pytest.raises(UnsupportedStackError) as caught:
        check_architectures(names)
    message = str(caught.value)
    assert f"architecture {shown} has no shadow path" in message
    assert all(name in message for name in ARCHITECTURES)


def test_every_family_of_adapters_has_its_architecture() -> None:
    # The base's family decides what an implicit backbone is: a gap would serve a base without adapters.
    names = {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family] for family in FAMILIES}
    assert names == set(ARCHITECTURES)
    assert AutoConfig.for_model("gpt2").model_type == "gpt2"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_module_of_every_architecture_exists(name: str) -> None:
    spec = importlib.util.find_spec(f"vllm.model_executor.models.{ARCHITECTURES[name].module}")
    assert spec is not None
    assert spec.origin is not None
    with open(spec.origin) as source:
        assert f"class {name}(" in source.read()
