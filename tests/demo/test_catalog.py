"""The shipped demo files: present, small, and readable without the engine's libraries."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shadow_server.demo import demo_adapter_paths, demo_model_path, demo_prompts

_MAX_ASSET_BYTES = 10 * 1024 * 1024
_SUFFIXES = {".json", ".jinja", ".safetensors"}


def _files() -> list[Path]:
    return [path for path in demo_model_path().parent.rglob("*") if path.is_file()]


def test_assets_stay_under_ten_megabytes():
    num_bytes = sum(path.stat().st_size for path in _files())
    assert 1_000_000 < num_bytes < _MAX_ASSET_BYTES


def test_assets_are_only_json_templates_and_safetensors():
    assert {path.suffix for path in _files()} == _SUFFIXES


def test_assets_do_not_name_the_machine_that_made_them():
    texts = [path.read_text("utf-8") for path in _files() if path.suffix != ".safetensors"]
    assert not [text for text in texts if "/tmp" in text or "/work" in text or "/home" in text]


def test_every_adapter_has_a_directory_and_an_expected_answer():
    paths = demo_adapter_paths()
    assert len(paths) >= 4
    assert {path.name for path in demo_model_path().parent.joinpath("adapters").iterdir()} == set(
        paths
    )
    for prompt in demo_prompts():
        assert set(prompt.expected) == set(paths)


def test_expected_answers_differ_between_adapters():
    for prompt in demo_prompts():
        assert len(set(prompt.expected.values())) == len(prompt.expected)


def test_adapters_cover_both_formats_and_every_kind_of_backbone():
    paths = demo_adapter_paths().values()
    paper = [
        (json.loads((path / "shadow_config.json").read_text()), (path / "config.json").exists())
        for path in paths
        if (path / "shadow_config.json").exists()
    ]
    peft = [
        json.loads((path / "adapter_config.json").read_text())
        for path in paths
        if (path / "adapter_config.json").exists()
    ]
    implicit = {
        config["num_shadow_layers"]: config for config, is_explicit in paper if not is_explicit
    }
    assert set(implicit) == {1, 2}
    assert implicit[2]["shadow_intermediate_size"] < implicit[1]["shadow_intermediate_size"]
    assert sum(is_explicit for _, is_explicit in paper) == 1
    assert {config["shadow_hidden_size"] for config in peft} == {None, 64}
    assert {config["peft_type"] for config in peft} == {"SHADOW"}


def test_explicit_backbone_shares_the_cache_geometry_of_the_base():
    base = json.loads((demo_model_path() / "config.json").read_text())
    explicit = [path for path in demo_adapter_paths().values() if (path / "config.json").exists()]
    backbone = json.loads((explicit[0] / "config.json").read_text())
    for field in ("head_dim", "num_key_value_heads"):
        assert backbone[field] == base[field]
    assert backbone["hidden_size"] != base["hidden_size"]


@pytest.mark.parametrize("library", ["torch", "transformers", "vllm"])
def test_catalog_needs_no_engine_library(library: str):
    code = (
        "import sys, shadow_server.demo as demo; demo.demo_prompts(); demo.demo_adapter_paths();"
        f" sys.exit({library!r} in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
