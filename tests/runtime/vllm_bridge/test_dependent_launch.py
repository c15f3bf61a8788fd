"""Which engines have their compiled kernels launched as dependents."""

import pytest
import torch
from vllm.config import CompilationConfig

from shadow_runtime.vllm_bridge.dependent_launch import enable_dependent_launch

OPTION = "triton.enable_pdl"
CUDA = torch.device("cuda", 0)


@pytest.fixture
def capability(monkeypatch):
    """Pretend that the device has a compute capability."""

    def pretend(*version):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: version)

    return pretend


@pytest.mark.parametrize(
    ("version", "is_enabled"), [((8, 9), False), ((9, 0), True), ((10, 0), True)]
)
def test_devices_that_can_launch_dependents_do(capability, version, is_enabled):
    capability(*version)
    config = CompilationConfig()
    assert enable_dependent_launch(config, CUDA) is is_enabled
    assert config.inductor_compile_config.get(OPTION, False) is is_enabled


def test_the_operators_setting_wins(capability):
    capability(9, 0)
    config = CompilationConfig(inductor_compile_config={OPTION: False})
    assert not enable_dependent_launch(config, CUDA)
    assert config.inductor_compile_config[OPTION] is False


def test_another_device_is_left_alone():
    config = CompilationConfig()
    assert not enable_dependent_launch(config, torch.device("cpu"))
    assert OPTION not in config.inductor_compile_config


def test_a_torch_without_the_option_is_left_alone(capability, monkeypatch):
    capability(9, 0)
    monkeypatch.delattr(torch._inductor.config.triton, "enable_pdl")
    config = CompilationConfig()
    assert not enable_dependent_launch(config, CUDA)
    assert OPTION not in config.inductor_compile_config


def test_inductor_knows_the_option():
    """A name that inductor does not know would fail every compilation."""
    with torch._inductor.config.patch({OPTION: True}):
        assert torch._inductor.config.triton.enable_pdl
