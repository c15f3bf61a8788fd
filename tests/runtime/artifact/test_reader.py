"""What a loaded adapter says about itself, and which bases it fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter_damage import edit_json, set_fields, set_tensors
from reference_adapters import FAMILIES, KINDS, build_adapter, build_base, build_config
from shadow_runtime.artifact import CanonicalAdapter, base_geometry, load_adapter
from shadow_runtime.errors import (
    AdapterConfigError,
    AdapterError,
    AdapterFileError,
    AdapterMismatchError,
    AdapterTensorError,
)
from shadow_runtime.types import AdapterManifest, BackboneSpec, BaseGeometry


def expected_shapes(manifest: AdapterManifest, width: int) -> dict[str, tuple[int, ...]]:
    """Return every canonical tensor that the manifest implies, as canonical.py lists them."""
    layers, rank, gate = len(manifest.injects), manifest.injection_rank, manifest.gate_size
    shapes: dict[str, tuple[int, ...]] = {
        "boundary.down": (layers, rank, width),
        "boundary.up": (layers, rank, width),
        "boundary.update_in": (layers, 2, gate, width),
        "boundary.update_out": (layers, 2, gate, width),
    }
    if manifest.has_update_bias:
        shapes["boundary.update_in_bias"] = (layers, 2, gate)
        shapes["boundary.update_out_bias"] = (layers, 2, width)
    if manifest.has_norm:
        shapes["boundary.norm_weight"] = shapes["boundary.norm_bias"] = (width,)
    for layer in range(manifest.backbone.num_layers):
        for name, shape in layer_shapes(manifest.backbone).items():
            shapes[f"backbone.layers.{layer}.{name}"] = shape
    return shapes | model_shapes(manifest.backbone, width)


def layer_shapes(spec: BackboneSpec) -> dict[str, tuple[int, ...]]:
    """Return the tensors of one backbone layer."""
    s, e, i = spec.hidden_size, spec.head_dim, spec.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {}
    norms = ["input_norm", "mlp_norm"]
    if spec.sandwich_norm:
        norms += ["attn_out_norm", "mlp_out_norm"]
    for norm in norms:
        shapes[f"{norm}.weight"] = (s,)
        if spec.norm == "layer":
            shapes[f"{norm}.bias"] = (s,)
    if spec.qk_norm:
        shapes["q_norm.weight"] = shapes["k_norm.weight"] = (e,)
    linears = {
        "q": (spec.num_heads * e, s, spec.qkv_bias),
        "k": (spec.num_kv_heads * e, s, spec.qkv_bias),
        "v": (spec.num_kv_heads * e, s, spec.qkv_bias),
        "o": (s, spec.num_heads * e, spec.o_bias),
        "up": (i, s, spec.mlp_bias),
        "down": (s, i, spec.mlp_bias),
    }
    if spec.mlp == "glu":
        linears["gate"] = (i, s, spec.mlp_bias)
    for name, (rows, columns, has_bias) in linears.items():
        shapes[f"{name}.weight"] = (rows, columns)
        if has_bias:
            shapes[f"{name}.bias"] = (rows,)
    return shapes


def model_shapes(spec: BackboneSpec, width: int) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a backbone outside its layers."""
    shapes: dict[str, tuple[int, ...]] = {"backbone.norm.weight": (spec.hidden_size,)}
    if spec.norm == "layer":
        shapes["backbone.norm.bias"] = (spec.hidden_size,)
    if spec.vocab_size:
        shapes["backbone.embed.weight"] = (spec.vocab_size, spec.hidden_size)
    if spec.learned_positions:
        shapes["backbone.position_embed.weight"] = (spec.learned_positions, spec.hidden_size)
    if spec.has_projection:
        shapes["backbone.projection.weight"] = (width, spec.hidden_size)
    return shapes


@pytest.mark.parametrize("family", FAMILIES)
def test_canonical_tensors_are_exactly_those_of_the_manifest(family: str, tmp_path: Path) -> None:
    base = build_base(family, tmp_path / "base", seed=3)
    geometry = base_geometry(build_config(family))
    for kind in KINDS:
        adapter = load_adapter(build_adapter(kind, base, tmp_path / kind, seed=5), geometry)
        shapes = {name: tuple(tensor.shape) for name, tensor in adapter.tensors.items()}
        assert shapes == expected_shapes(adapter.manifest, geometry.hidden_size)
        assert all(tensor.is_contiguous() for tensor in adapter.tensors.values())
        check_manifest(adapter, tmp_path / kind, geometry)


def check_manifest(adapter: CanonicalAdapter, path: Path, geometry: BaseGeometry) -> None:
    """Check what the manifest derives from tensors and path."""
    manifest, tensors = adapter.manifest, adapter.tensors.values()
    assert manifest.path == str(path)
    assert manifest.num_parameters == sum(tensor.numel() for tensor in tensors)
    assert manifest.tensor_bytes == 4 * manifest.num_parameters
    assert len(manifest.injects) == len(manifest.updates) == geometry.num_layers
    assert not manifest.updates[0]
    assert BackboneSpec.from_dict(manifest.backbone.to_dict()) == manifest.backbone


def test_paper_injects_from_layer_one_and_updates_from_boundary_two(
    originals: Path, geometry: BaseGeometry
) -> None:
    adapter = load_adapter(originals / "paper_implicit", geometry)
    assert adapter.manifest.injects == (False, True, True, True)
    assert adapter.manifest.updates == (False, False, True, True)
    assert not adapter.tensors["boundary.up"][0].any()
    assert not adapter.tensors["boundary.update_out"][:2].any()


def test_peft_injects_before_every_wrapped_layer(originals: Path, geometry: BaseGeometry) -> None:
    manifest = load_adapter(originals / "peft_mirror", geometry).manifest
    assert manifest.injects == (True, True, True, True)
    assert manifest.updates == (False, True, True, True)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("paper_implicit", {"hidden_size": 96}),
        ("paper_implicit", {"num_layers": 3}),
        ("paper_implicit", {"num_layers": 6}),
        ("peft_mirror", {"hidden_size": 32}),
        ("peft_mirror", {"num_layers": 3}),
    ],
)
def test_another_base_is_a_mismatch(
    kind: str, change: dict[str, int], originals: Path, geometry: BaseGeometry
) -> None:
    with pytest.raises(AdapterMismatchError, match=r"this base has"):
        load_adapter(originals / kind, dataclasses.replace(geometry, **change))


def test_a_pattern_that_wraps_more_layers_of_this_base_is_a_mismatch(
    copy: Callable[[str], Path], geometry: BaseGeometry
) -> None:
    adapter = copy("peft_mirror")
    set_fields(target_modules=r".*\.layers\.\d+$")(adapter)
    load_adapter(adapter, geometry)
    with pytest.raises(AdapterMismatchError, match="config wraps 6 layers"):
        load_adapter(adapter, dataclasses.replace(geometry, num_layers=6))


def test_another_family_is_refused(originals: Path) -> None:
    gpt2 = base_geometry(build_config("gpt2"))
    for kind in ("paper_implicit", "peft_mirror"):
        with pytest.raises(AdapterError):
            load_adapter(originals / kind, gpt2)


def test_own_embeddings_must_cover_the_vocabulary(originals: Path, geometry: BaseGeometry) -> None:
    larger = dataclasses.replace(geometry, vocab_size=257)
    with pytest.raises(AdapterMismatchError, match="vocabulary has 257"):
        load_adapter(originals / "paper_explicit", larger)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_are_kept_as_stored(
    dtype: torch.dtype, copy: Callable[[str], Path], geometry: BaseGeometry
) -> None:
    adapter = copy("paper_implicit")
    set_tensors(lambda ts: ts.update({k: t.to(dtype) for k, t in ts.items() if "norm" not in k}))(
        adapter
    )
    tensors = load_adapter(adapter, geometry).tensors
    kept = {name: tensor.dtype for name, tensor in tensors.items()}
    assert all(found == (torch.float32 if "norm" in k else dtype) for k, found in kept.items())


def test_mixed_dtypes_pack_without_rounding(
    copy: Callable[[str], Path], geometry: BaseGeometry
) -> None:
    adapter = copy("peft_mirror")
    expected = load_adapter(adapter, geometry).tensors["boundary.up"]
    key = "base_model.model.model.layers.1.shadow_up.default.weight"
    set_tensors(lambda ts: ts.update({key: ts[key].to(torch.bfloat16)}))(adapter)
    got = load_adapter(adapter, geometry).tensors["boundary.up"]
    assert got.dtype == torch.float32
    assert torch.equal(got[[0, 2, 3]], expected[[0, 2, 3]])
    assert torch.equal(got[1], expected[1].to(torch.bfloat16).float())


@pytest.mark.parametrize("prefix", ["module.", "peft_model.", "module.peft_model."])
def test_wrapper_prefixes_change_nothing(
    prefix: str, copy: Callable[[str], Path], originals: Path, geometry: BaseGeometry
) -> None:
    adapter = copy("paper_implicit")
    path = adapter / "shadow_adapter.safetensors"
    save_file({prefix + key: tensor for key, tensor in load_file(path).items()}, path)
    expected = load_adapter(originals / "paper_implicit", geometry)
    assert load_adapter(adapter, geometry).manifest.digest == expected.manifest.digest


def test_trainer_checkpoint_with_the_config_beside_it_loads(
    copy: Callable[[str], Path], originals: Path, geometry: BaseGeometry
) -> None:
    adapter = copy("paper_implicit")
    tensors = load_file(adapter / "shadow_adapter.safetensors")
    (adapter / "shadow_adapter.safetensors").unlink()
    renamed = {f"peft_model.{key}": tensor for key, tensor in tensors.items()}
    save_file(renamed, adapter / "model.safetensors")
    expected = load_adapter(originals / "paper_implicit", geometry)
    assert load_adapter(adapter, geometry).manifest.digest == expected.manifest.digest


def test_detached_head_is_ignored_with_a_note(
    copy: Callable[[str], Path], geometry: BaseGeometry
) -> None:
    adapter = copy("paper_implicit")
    set_fields(modules_to_save=["shadow_lm_head"])(adapter)
    save_file({"shadow_lm_head.weight": torch.zeros(4)}, adapter / "shadow_modules.safetensors")
    (note,) = load_adapter(adapter, geometry).manifest.notes
    assert "shadow_lm_head" in note


@pytest.mark.parametrize("head", ["lm_head", "classifier_head", "module.lm_head"])
def test_trained_head_is_refused(
    head: str, copy: Callable[[str], Path], geometry: BaseGeometry
) -> None:
    adapter = copy("paper_implicit")
    save_file({f"{head}.weight": torch.zeros(4)}, adapter / "shadow_modules.safetensors")
    with pytest.raises(AdapterTensorError, match="head"):
        load_adapter(adapter, geometry)


def test_backbone_config_from_the_operator(
    copy: Callable[[str], Path], tmp_path: Path, originals: Path, geometry: BaseGeometry
) -> None:
    adapter = copy("paper_explicit")
    config = (adapter / "config.json").rename(tmp_path / "backbone.json")
    loaded = load_adapter(adapter, geometry, backbone_config=config).manifest
    assert loaded.backbone_config == str(config)
    assert loaded.digest == load_adapter(originals / "paper_explicit", geometry).manifest.digest
    with pytest.raises(AdapterTensorError):
        load_adapter(adapter, geometry)


def test_backbone_config_that_is_not_there(originals: Path, geometry: BaseGeometry) -> None:
    with pytest.raises(AdapterFileError, match="no file"):
        load_adapter(originals / "paper_explicit", geometry, backbone_config=Path("missing.json"))


def test_mirror_takes_no_backbone_config(originals: Path, geometry: BaseGeometry) -> None:
    config = originals / "paper_explicit" / "config.json"
    with pytest.raises(AdapterFileError, match="mirrors the base"):
        load_adapter(originals / "peft_mirror", geometry, backbone_config=config)


def test_a_class_that_a_config_names_is_not_imported(
    copy: Callable[[str], Path], geometry: BaseGeometry, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = copy("paper_explicit")
    inner = (adapter / "config.json").read_text()
    (adapter / "config.json").write_text(
        '{"model_type": "causal_lm_with_hidden_projection", "base_hidden_size": 64,'
        ' "shadow_model_class": "evil:Model", "shadow_model_config_class": "evil:Config",'
        f' "shadow_model_config": {inner}}}'
    )
    imported: list[str] = []
    monkeypatch.setattr("importlib.import_module", lambda name, *_: imported.append(name))
    load_adapter(adapter, geometry)
    assert "evil" not in imported


def test_old_rope_spelling_is_the_same_adapter(
    copy: Callable[[str], Path], originals: Path, geometry: BaseGeometry
) -> None:
    adapter = copy("paper_explicit")
    edit_json(adapter / "config.json", {"rope_parameters": None, "rope_theta": 10000.0})
    expected = load_adapter(originals / "paper_explicit", geometry).manifest
    assert load_adapter(adapter, geometry).manifest.digest == expected.digest


def test_another_base_name_is_noted(copy: Callable[[str], Path], geometry: BaseGeometry) -> None:
    adapter = copy("peft_mirror")
    named = dataclasses.replace(geometry, hf_config=geometry.hf_config | {"_name_or_path": "a/Q"})
    set_fields(base_model_name_or_path="other/Q")(adapter)
    assert load_adapter(adapter, named).manifest.notes == ()
    set_fields(base_model_name_or_path="other/P")(adapter)
    (note,) = load_adapter(adapter, named).manifest.notes
    assert "'P'" in note


def test_more_implicit_layers_than_layer_types_are_refused(tmp_path: Path) -> None:
    base = build_base("gemma2", tmp_path / "base", seed=3)
    adapter = build_adapter("paper_implicit", base, tmp_path / "adapter", seed=5)
    set_fields(num_shadow_layers=5)(adapter)
    with pytest.raises(AdapterConfigError, match="layer_types for 4 of 5"):
        load_adapter(adapter, base_geometry(build_config("gemma2")))
