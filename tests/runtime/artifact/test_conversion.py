"""Conversions: what is written computes what was read, by the packages' own word; what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from adapter_damage import tensor_file
from reference_adapters import KINDS, build_adapter, build_base, reference_logits
from shadow_runtime.artifact import base_geometry, load_adapter
from shadow_runtime.artifact.conversion import NotConvertibleError, convert_adapter
from shadow_runtime.errors import AdapterFileError, AdapterTensorError

TOKEN_IDS = torch.randint(0, 256, (16,), generator=torch.Generator().manual_seed(1)).tolist()
TOLERANCE = 1e-4


def geometry_of(base: Path):
    return base_geometry(AutoConfig.from_pretrained(base))


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def base(request, tmp_path_factory) -> Path:
    return build_base(request.param, tmp_path_factory.mktemp(request.param), seed=3)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return build_base("llama", tmp_path_factory.mktemp("llama"), seed=3)


def check_same_answers(base: Path, one: tuple[str, Path], other: tuple[str, Path]) -> None:
    first, second = (
        reference_logits(kind, base, path, TOKEN_IDS).log_softmax(-1) for kind, path in (one, other)
    )
    assert (first - second).abs().max().item() < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_within_its_format_an_adapter_stays_what_it_is(base, kind, tmp_path):
    source = build_adapter(kind, base, tmp_path / "source", seed=5)
    own_format = "paper" if kind.startswith("paper") else "peft"
    done = convert_adapter(source, tmp_path / "made", geometry_of(base), own_format)
    assert done.source.digest == done.target.digest
    assert load_adapter(tmp_path / "made", geometry_of(base)).manifest.digest == done.source.digest
    check_same_answers(base, (kind, source), (kind, tmp_path / "made"))


def test_a_trainers_prefixes_and_names_are_gone(llama, tmp_path):
    source = build_adapter("paper_implicit", llama, tmp_path / "source", seed=5)
    tensors = load_file(source / "shadow_adapter.safetensors")
    (source / "shadow_adapter.safetensors").unlink()
    save_file({f"module.{k}": v for k, v in tensors.items()}, source / "model.safetensors")
    done = convert_adapter(source, tmp_path / "made", geometry_of(llama), "paper")
    assert done.target.digest == done.source.digest
    names = [path.name for path in sorted((tmp_path / "made").iterdir())]
    assert names == ["shadow_adapter.safetensors", "shadow_config.json"]
    assert load_file(tmp_path / "made" / "shadow_adapter.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_one_corrected_layer_goes_from_peft_to_paper_and_back(base, layer, tmp_path):
    geometry = geometry_of(base)
    source = build_adapter("peft_partial", base, tmp_path / "source", seed=5, layers=[layer])
    there = convert_adapter(source, tmp_path / "paper", geometry, "paper")
    assert (there.target.format, there.target.injects[0]) == ("paper", False)
    check_same_answers(
        base, ("peft_partial", source), ("paper_implicit_two_layers", tmp_path / "paper")
    )
    back = convert_adapter(tmp_path / "paper", tmp_path / "peft", geometry, "peft")
    assert back.target.digest == there.source.digest
    check_same_answers(base, ("peft_partial", source), ("peft_partial", tmp_path / "peft"))


def test_two_layers_have_no_update_between_corrections(tmp_path):
    base = build_base("llama", tmp_path / "base", seed=3, num_layers=2)
    source = build_adapter("paper_implicit", base, tmp_path / "source", seed=5)
    there = convert_adapter(source, tmp_path / "peft", geometry_of(base), "peft")
    assert there.target.injects == (False, True)
    check_same_answers(base, ("paper_implicit", source), ("peft_partial", tmp_path / "peft"))
    convert_adapter(tmp_path / "peft", tmp_path / "paper", geometry_of(base), "paper")
    check_same_answers(base, ("paper_implicit", source), ("paper_implicit", tmp_path / "paper"))


@pytest.mark.parametrize(
    ("kind", "options", "target_format", "reasons"),
    [
        ("paper_implicit", {}, "peft", ["2 layers (2 to 3)", "SiLU", "GELU"]),
        ("paper_explicit", {}, "peft", ["SiLU", "backbone is an explicit one"]),
        ("peft_mirror", {}, "paper", ["3 layers (1 to 3)", "GELU", "the first layer"]),
        ("peft_partial", {}, "paper", ["1 layers (2 to 2)"]),
        ("peft_partial", {"layers": [0]}, "paper", ["corrects the first layer"]),
        ("peft_mirror_narrow", {}, "paper", ["a width of its own"]),
    ],
)
def test_what_the_other_format_cannot_compute_is_refused(
    llama, kind, options, target_format, reasons, tmp_path
):
    source = build_adapter(kind, llama, tmp_path / "source", seed=5, **options)
    with pytest.raises(NotConvertibleError) as caught:
        convert_adapter(source, tmp_path / "made", geometry_of(llama), target_format)
    assert [reason for reason in reasons if reason not in str(caught.value)] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_backbone_that_the_format_has_no_field_for_is_refused(llama, tmp_path):
    source = build_adapter(
        "paper_implicit", llama, tmp_path / "source", seed=5, shadow_num_key_value_heads=1
    )
    path = tensor_file(source)
    tensors = load_file(path)
    ups = tensors["shadow_injection_model.injection_ups"]
    ups[1:] = 0  # one corrected layer is left
    save_file(tensors, path)
    with pytest.raises(NotConvertibleError, match="has no fields for this adapter's"):
        convert_adapter(source, tmp_path / "made", geometry_of(llama), "peft")
    assert not (tmp_path / "made").exists()


def test_an_adapter_that_corrects_nothing_is_refused(llama, tmp_path):
    source = build_adapter("peft_partial", llama, tmp_path / "source", seed=5, layers=[2])
    path = tensor_file(source)
    tensors = {k: v * (0 if "shadow_up." in k else 1) for k, v in load_file(path).items()}
    save_file(tensors, path)
    with pytest.raises(NotConvertibleError, match="corrects no layer"):
        convert_adapter(source, tmp_path / "made", geometry_of(llama), "paper")


def test_bad_sources_and_targets(llama, tmp_path):
    source = build_adapter("paper_implicit", llama, tmp_path / "source", seed=5)
    geometry = geometry_of(llama)
    with pytest.raises(AdapterFileError, match="exists already"):
        convert_adapter(source, source, geometry, "paper")
    with pytest.raises(AdapterFileError, match="no folder"):
        convert_adapter(source, tmp_path / "a" / "b", geometry, "paper")
    tensors = load_file(tensor_file(source))
    tensors["shadow_injection_model.injection_ups"][0, 0, 0] = float("nan")
    save_file(tensors, tensor_file(source))
    with pytest.raises(AdapterTensorError, match="NaN"):
        convert_adapter(source, tmp_path / "made", geometry, "paper")


def test_a_backbone_config_from_elsewhere_is_brought_along(llama, tmp_path):
    source = build_adapter("paper_explicit", llama, tmp_path / "source", seed=5)
    config = tmp_path / "elsewhere.json"
    (source / "config.json").rename(config)
    done = convert_adapter(
        source, tmp_path / "made", geometry_of(llama), "paper", backbone_config=config
    )
    assert done.target.digest == done.source.digest
    assert json.loads((tmp_path / "made" / "config.json").read_text())["model_type"] == "llama"
