"""What the shipped models answer to held-out prompts, computed by the packages that trained them."""

import pytest
import torch
from demo_training.adapter import load_adapter
from demo_training.evaluation import greedy_answers
from transformers import AutoTokenizer, Qwen3ForCausalLM

from shadow_server.demo import demo_adapter_paths, demo_model_path, demo_prompts

_PROMPTS = [prompt.prompt for prompt in demo_prompts()]


def _base() -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM.from_pretrained(demo_model_path()).eval()


def _expected(adapter_name: str) -> list[str]:
    return [prompt.expected[adapter_name] for prompt in demo_prompts()]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_model_path())


@pytest.fixture(scope="module")
def base_answers(tokenizer) -> list[str]:
    return greedy_answers(_base(), tokenizer, _PROMPTS)


@pytest.mark.parametrize("name", demo_adapter_paths())
def test_adapter_does_its_task_to_the_letter(name: str, tokenizer):
    adapter = load_adapter(_base(), demo_adapter_paths()[name])
    assert greedy_answers(adapter, tokenizer, _PROMPTS) == _expected(name)


@pytest.mark.parametrize("name", demo_adapter_paths())
def test_base_does_not_do_the_task(name: str, base_answers: list[str]):
    assert not set(base_answers) & set(_expected(name))


def test_base_tells_a_story_that_ends(base_answers: list[str]):
    assert all(answer.startswith(" then the ") and answer.endswith(".") for answer in base_answers)


@pytest.mark.parametrize("name", demo_adapter_paths())
def test_task_breaks_without_the_shadow_backbone(name: str, tokenizer):
    """Sabotage: an engine that computes no shadow state must not be able to pass for a working one."""
    adapter = load_adapter(_base(), demo_adapter_paths()[name])
    _silence(adapter)
    answers = greedy_answers(adapter, tokenizer, _PROMPTS)
    num_right = sum(a == b for a, b in zip(answers, _expected(name), strict=True))
    assert num_right < len(answers) // 2


def _silence(adapter: torch.nn.Module) -> None:
    """Zero the last norm of the shadow backbone, so that the first shadow state is zero everywhere."""
    names = [name for name, _ in adapter.named_parameters() if _is_backbone_norm(name)]
    assert len(names) == 1
    with torch.no_grad():
        adapter.get_parameter(names[0]).zero_()


def _is_backbone_norm(name: str) -> bool:
    backbones = ("peft_model.shadow_model.norm.", "shadow_backbone.default.norm.")
    return any(backbone in name for backbone in backbones)
