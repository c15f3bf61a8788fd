"""The zoo: every hostile or broken adapter is refused with its documented error, before data is read."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from adapter_damage import (
    Damage,
    config_file,
    poison,
    set_backbone,
    set_entry,
    set_fields,
    set_header,
    set_tensor,
    set_tensors,
    tensor_file,
    write_bytes,
    write_config,
)
from shadow_runtime.artifact import load_adapter
from shadow_runtime.artifact.tensor_file import TensorFile
from shadow_runtime.errors import (
    AdapterConfigError,
    AdapterError,
    AdapterFileError,
    AdapterLimitError,
    AdapterMismatchError,
    AdapterNotFoundError,
    AdapterTensorError,
)
from shadow_runtime.types import AdapterLimits, BaseGeometry

PAPER, EXPLICIT, PEFT, PEFT_EXPLICIT = (
    "paper_implicit",
    "paper_explicit",
    "peft_mirror",
    "peft_explicit",
)
MAX_SECONDS = 1.0
MAX_BYTES = 8 << 20


class Case(NamedTuple):
    """One hostile adapter."""

    kind: str
    damage: Damage
    error: type[AdapterError]
    message: str


def replace_by(make: Callable[[Path], Any], find: Callable[[Path], Path] = tensor_file) -> Damage:
    """Replace a file of the adapter by whatever `make` puts at its path."""

    def damage(adapter: Path) -> None:
        path = find(adapter)
        path.unlink()
        make(path)

    return damage


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def link_out(path: Path) -> None:
    target = path.parent.parent / "elsewhere"
    target.write_text("{}")
    path.symlink_to(target)


def many_tensors(number: int) -> str:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return json.dumps({str(index): entry for index in range(number)})


def pickled(path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, path)


def duplicate(tensors: dict[str, torch.Tensor]) -> None:
    for key in list(tensors)[:1]:
        tensors[f"module.{key}"] = tensors[key].clone()


def rename(old: str, new: str) -> Damage:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if old in key]:
            tensors[key.replace(old, new)] = tensors.pop(key)

    return set_tensors(edit)


def remove(name: str) -> Damage:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if name in key]:
            del tensors[key]

    return set_tensors(edit)


def add(name: str) -> Damage:
    return set_tensors(lambda tensors: tensors.update({name: torch.zeros(2)}))


DEEP = "[" * 100_000 + "]" * 100_000
ALPHA = '{"alpha": %s}'
DOWNS = "injection_downs"

CASES: dict[str, Case] = {
    # The file.
    "empty file": Case(PAPER, write_bytes(lambda _: b""), AdapterFileError, "truncated"),
    "truncated length": Case(PAPER, write_bytes(lambda d: d[:5]), AdapterFileError, "truncated"),
    "truncated header": Case(PAPER, write_bytes(lambda d: d[:64]), AdapterFileError, "truncated"),
    "truncated data": Case(PEFT, write_bytes(lambda d: d[:-1]), AdapterFileError, "truncated"),
    "trailing bytes": Case(PEFT, write_bytes(lambda d: d + b"x"), AdapterFileError, "trailing"),
    "header length 2^63": Case(
        PAPER,
        write_bytes(lambda d: (1 << 63).to_bytes(8, "little") + d[8:]),
        AdapterFileError,
        "truncated",
    ),
    "header over its cap": Case(
        PAPER, set_header(lambda h: json.dumps(h) + " " * (1 << 20)), AdapterFileError, "header"
    ),
    "header not JSON": Case(PAPER, set_header(lambda _: "{]"), AdapterFileError, "JSON"),
    "header not UTF-8": Case(
        PAPER, write_bytes(lambda _: (2).to_bytes(8, "little") + b"{\xff"), AdapterFileError, "JSON"
    ),
    "header a list": Case(PAPER, set_header(lambda _: "[]"), AdapterFileError, "safetensors"),
    "header deep": Case(
        PAPER, set_header(lambda _: '{"a":' + DEEP + "}"), AdapterFileError, "nests"
    ),
    "header repeats a key": Case(
        PAPER,
        set_header(lambda h: json.dumps(h)[:-1] + ", " + json.dumps(h)[1:]),
        AdapterFileError,
        "twice",
    ),
    "100,000 tensors": Case(
        PAPER, set_header(lambda _: many_tensors(100_000)), AdapterFileError, "header"
    ),
    "9,000 tensors": Case(
        PAPER, set_header(lambda _: many_tensors(9_000)), AdapterFileError, "9000 tensors"
    ),
    "overlapping offsets": Case(
        PAPER,
        set_header(lambda h: json.loads(many_tensors(2))),
        AdapterFileError,
        "overlap",
    ),
    "gap before the first": Case(
        PAPER,
        set_header(lambda _: {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}),
        AdapterFileError,
        "gaps",
    ),
    "entry without shape": Case(
        PAPER, set_header(lambda _: {"a": {"dtype": "F32"}}), AdapterFileError, "malformed"
    ),
    "entry not an object": Case(
        PAPER, set_header(lambda _: {"a": 1}), AdapterFileError, "malformed"
    ),
    "negative size": Case(PAPER, set_entry(shape=[-1, -1]), AdapterFileError, "malformed"),
    "size a boolean": Case(PAPER, set_entry(shape=[True]), AdapterFileError, "malformed"),
    "size 2^60": Case(PAPER, set_entry(shape=[1 << 60, 16]), AdapterFileError, "malformed"),
    "shape over its bytes": Case(PAPER, set_entry(shape=[1 << 40]), AdapterFileError, "byte range"),
    "empty tensor": Case(PAPER, set_entry(shape=[0, 8]), AdapterTensorError, "empty"),
    "many dimensions": Case(PAPER, set_entry(shape=[1] * 60), AdapterTensorError, "shape"),
    "dtype F64": Case(PAPER, set_tensor(DOWNS, torch.Tensor.double), AdapterTensorError, "F64"),
    "dtype I64": Case(
        PEFT, set_tensor("down.default.weight", torch.Tensor.long), AdapterTensorError, "I64"
    ),
    "dtype a list": Case(PAPER, set_entry(dtype=["F32"]), AdapterTensorError, "dtype"),
    "pickle named safetensors": Case(PAPER, replace_by(pickled), AdapterFileError, "safetensors"),
    "symlink": Case(PAPER, replace_by(link_out), AdapterFileError, "symbolic link"),
    "symlinked config": Case(PEFT, replace_by(link_out, config_file), AdapterFileError, "symbolic"),
    "FIFO": Case(PAPER, replace_by(os.mkfifo), AdapterFileError, "regular"),
    "config a FIFO": Case(PEFT, replace_by(os.mkfifo, config_file), AdapterFileError, "regular"),
    "directory as file": Case(PAPER, replace_by(os.mkdir), AdapterFileError, "regular"),
    "sparse terabyte": Case(PAPER, replace_by(sparse), AdapterFileError, "limit"),
    "config a sparse terabyte": Case(
        PAPER, replace_by(sparse, config_file), AdapterFileError, "limit"
    ),
    "tensor file missing": Case(
        PEFT, lambda a: tensor_file(a).unlink(), AdapterFileError, "no file"
    ),
    "paper pickle": Case(
        PAPER,
        lambda a: tensor_file(a).rename(a / "shadow_adapter.pt") and None,
        AdapterFileError,
        "save_pretrained",
    ),
    "peft pickle": Case(
        PEFT,
        lambda a: tensor_file(a).rename(a / "adapter_model.bin") and None,
        AdapterFileError,
        "save_pretrained",
    ),
    "no config": Case(PAPER, lambda a: config_file(a).unlink(), AdapterFileError, "neither"),
    "both formats": Case(
        PAPER,
        lambda a: (a / "adapter_config.json").write_text("{}") and None,
        AdapterConfigError,
        "both",
    ),
    # The config.
    "config not JSON": Case(PAPER, write_config("{"), AdapterConfigError, "malformed"),
    "config a list": Case(PAPER, write_config("[]"), AdapterConfigError, "object"),
    "config not UTF-8": Case(
        PAPER, write_config(b'{"a": "\xff"}'), AdapterConfigError, "malformed"
    ),
    "config repeats a key": Case(
        PAPER, write_config('{"alpha": 1, "alpha": 2}'), AdapterConfigError, "twice"
    ),
    "config deep": Case(PAPER, write_config('{"a":' + DEEP + "}"), AdapterConfigError, "nests"),
    "config 2 MiB": Case(
        PAPER, write_config("{" + " " * (2 << 20) + "}"), AdapterFileError, "limit"
    ),
    "alpha a boolean": Case(PAPER, set_fields(alpha=True), AdapterConfigError, "'alpha'"),
    "alpha a string": Case(PAPER, set_fields(alpha="1.0"), AdapterConfigError, "'alpha'"),
    "alpha null": Case(PAPER, set_fields(alpha=None), AdapterConfigError, "'alpha'"),
    "alpha infinite": Case(PAPER, write_config(ALPHA % "Infinity"), AdapterConfigError, "Infinity"),
    "alpha NaN": Case(PAPER, write_config(ALPHA % "NaN"), AdapterConfigError, "NaN"),
    "alpha 1e999": Case(PAPER, write_config(ALPHA % "1e999"), AdapterConfigError, "range"),
    "alpha of 10,000 digits": Case(
        PAPER, write_config(ALPHA % ("9" * 10_000)), AdapterConfigError, "digits"
    ),
    "alpha 10^30": Case(PEFT, set_fields(shadow_alpha=10**30), AdapterConfigError, "finite"),
    "rank 1e9": Case(PAPER, set_fields(injection_hidden_size=10**9), AdapterLimitError, "rank"),
    "rank 10^20": Case(PEFT, set_fields(r=10**20), AdapterConfigError, "'r'"),
    "rank zero": Case(PEFT, set_fields(r=0), AdapterConfigError, "'r'"),
    "rank a float": Case(PEFT, set_fields(r=8.0), AdapterConfigError, "'r'"),
    "rank not the tensors'": Case(PEFT, set_fields(r=4), AdapterConfigError, "tensors have 8"),
    "gate 1e9": Case(PEFT, set_fields(update_hidden_size=10**9), AdapterLimitError, "gate"),
    "1e9 shadow layers": Case(
        PAPER, set_fields(num_shadow_layers=10**9), AdapterLimitError, "layers"
    ),
    "1e9 mirror layers": Case(
        PEFT, set_fields(shadow_num_hidden_layers=10**9), AdapterLimitError, "layers"
    ),
    "MLP width 1e9": Case(
        PEFT, set_fields(shadow_intermediate_size=10**9), AdapterLimitError, "MLP"
    ),
    "1e9 heads": Case(
        PAPER, set_fields(shadow_num_attention_heads=10**9), AdapterLimitError, "heads"
    ),
    "heads that do not divide": Case(
        PAPER, set_fields(shadow_num_attention_heads=3), AdapterConfigError, "divide"
    ),
    "mirror width 1e9": Case(
        PEFT, set_fields(shadow_hidden_size=10**9), AdapterTensorError, "lacks"
    ),
    "unknown field": Case(
        PAPER, set_fields(residual_scale=2.0), AdapterConfigError, "'residual_scale'"
    ),
    "unknown peft field": Case(PEFT, set_fields(use_dora=True), AdapterConfigError, "'use_dora'"),
    "another peft type": Case(PEFT, set_fields(peft_type="LORA"), AdapterConfigError, "LORA"),
    "another task": Case(PEFT, set_fields(task_type="SEQ_CLS"), AdapterConfigError, "SEQ_CLS"),
    "trained biases": Case(PEFT, set_fields(bias="all"), AdapterConfigError, "biases"),
    "trained modules": Case(
        PEFT, set_fields(modules_to_save=["lm_head"]), AdapterConfigError, "lm_head"
    ),
    "trained paper head": Case(
        PAPER, set_fields(modules_to_save=["lm_head"]), AdapterConfigError, "lm_head"
    ),
    "modules a string": Case(
        PAPER, set_fields(modules_to_save="lm_head"), AdapterConfigError, "list"
    ),
    "a million layers_to_transform": Case(
        PEFT, set_fields(layers_to_transform=list(range(10**6))), AdapterFileError, "limit"
    ),
    "negative layers_to_transform": Case(
        PEFT, set_fields(layers_to_transform=[-1]), AdapterConfigError, "layers_to"
    ),
    "catastrophic pattern": Case(
        PEFT, set_fields(target_modules="(.*)*x"), AdapterConfigError, "complex"
    ),
    "hidden catastrophic pattern": Case(
        PEFT, set_fields(target_modules="(?x)(.+) +x"), AdapterConfigError, "complex"
    ),
    "many quantifiers": Case(
        PEFT, set_fields(target_modules=".*.*.*.*.*x"), AdapterConfigError, "complex"
    ),
    "invalid pattern": Case(
        PEFT, set_fields(target_modules="("), AdapterConfigError, "valid pattern"
    ),
    "remote backbone": Case(
        PEFT, set_fields(shadow_model="evil/repo"), AdapterConfigError, "never downloads"
    ),
    "backbone by path": Case(
        PEFT, set_fields(shadow_model="../../x"), AdapterConfigError, "never downloads"
    ),
    "backbone a number": Case(PEFT, set_fields(shadow_model=1), AdapterConfigError, "shadow_model"),
    # The explicit backbone's config.
    "backbone of another type": Case(
        EXPLICIT, set_backbone(model_type="bert"), AdapterConfigError, "supported are"
    ),
    "backbone type a list": Case(
        EXPLICIT, set_backbone(model_type=["llama"]), AdapterConfigError, "supported are"
    ),
    "backbone with code": Case(
        EXPLICIT, set_backbone(auto_map={"AutoModel": "x.Y"}), AdapterConfigError, "auto_map"
    ),
    "quantised backbone": Case(
        EXPLICIT, set_backbone(quantization_config={"bits": 4}), AdapterConfigError, "quant"
    ),
    "backbone of 1e9 layers": Case(
        EXPLICIT, set_backbone(num_hidden_layers=10**9), AdapterLimitError, "layers"
    ),
    "backbone vocabulary 1e9": Case(
        EXPLICIT, set_backbone(vocab_size=10**9), AdapterLimitError, "rows"
    ),
    "backbone vocabulary too small": Case(
        EXPLICIT, set_backbone(vocab_size=100), AdapterMismatchError, "vocabulary"
    ),
    "backbone context 2^30": Case(
        EXPLICIT, set_backbone(max_position_embeddings=1 << 30), AdapterConfigError, "positions"
    ),
    "backbone activation": Case(
        EXPLICIT, set_backbone(hidden_act="relu"), AdapterConfigError, "relu"
    ),
    "backbone epsilon": Case(
        PEFT_EXPLICIT, set_backbone(rms_norm_eps=-1.0), AdapterConfigError, "epsilon"
    ),
    "backbone rope type": Case(
        EXPLICIT,
        set_backbone(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        AdapterConfigError,
        "dynamic",
    ),
    "backbone rope theta": Case(
        EXPLICIT,
        set_backbone(rope_parameters={"rope_type": "default", "rope_theta": -1.0}),
        AdapterConfigError,
        "rope",
    ),
    "projected without inner config": Case(
        EXPLICIT,
        set_backbone(model_type="causal_lm_with_hidden_projection", base_hidden_size=64),
        AdapterConfigError,
        "shadow_model_config",
    ),
    "projected to another width": Case(
        EXPLICIT,
        set_backbone(model_type="causal_lm_with_hidden_projection", base_hidden_size=96),
        AdapterMismatchError,
        "width 96",
    ),
    # The tensors.
    "unknown key": Case(PAPER, add("shadow_model.extra"), AdapterTensorError, "unknown"),
    "unknown peft key": Case(PEFT, add("base_model.model.extra"), AdapterTensorError, "unknown"),
    "missing key": Case(PAPER, remove("hidden_norm.bias"), AdapterTensorError, "lacks"),
    "no keys": Case(PAPER, set_tensors(lambda t: t.clear()), AdapterTensorError, "lacks"),
    "no layers": Case(
        PEFT, rename(".layers.", ".blocks."), AdapterTensorError, "no tensors for any layer"
    ),
    "a gap in the layers": Case(
        PEFT,
        remove("model.layers.1."),
        AdapterTensorError,
        "contiguous",
    ),
    "layer number of 100,000 digits": Case(
        PEFT,
        rename("model.layers.0.", "model.layers." + "0" * 10_000 + "."),
        AdapterMismatchError,
        "wraps layers 1 to 3",
    ),
    "key there twice": Case(PAPER, set_tensors(duplicate), AdapterTensorError, "twice"),
    "trained head": Case(PEFT, add("base_model.model.lm_head.weight"), AdapterTensorError, "head"),
    "classifier": Case(
        PEFT, add("base_model.shadow_head.default.weight"), AdapterTensorError, "head"
    ),
    "wrong shape": Case(
        PAPER, set_tensor("mlp.up_proj.weight", lambda t: t[:-1]), AdapterTensorError, "expected"
    ),
    "wrong rank": Case(PAPER, set_tensor(DOWNS, lambda t: t[0]), AdapterTensorError, "dimensions"),
    "projection missing": Case(
        EXPLICIT,
        remove("shadow_hidden_projection"),
        AdapterMismatchError,
        "tied",
    ),
}
POISONED: dict[str, Case] = {
    f"{value} in {name}": Case(kind, poison(name, value), AdapterTensorError, "NaN or Inf")
    for kind, name, value in [
        (PAPER, DOWNS, float("nan")),
        (PAPER, "update_transforms.2.3.weight", float("inf")),
        (PAPER, "hidden_norm.bias", float("-inf")),
        (PEFT, "shadow_update_gate.default.2.bias", float("nan")),
        (EXPLICIT, "embed_tokens.weight", float("inf")),
        (EXPLICIT, "shadow_hidden_projection.weight", float("nan")),
    ]
}


def refuse(case: Case, adapter: Path, geometry: BaseGeometry) -> None:
    """Assert that the damaged copy is refused as documented, fast, in one short line."""
    case.damage(adapter)
    tracemalloc.start()
    started = time.monotonic()
    with pytest.raises(case.error, match=case.message) as caught:
        load_adapter(adapter, geometry)
    seconds, peak = time.monotonic() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < MAX_SECONDS
    assert peak < MAX_BYTES
    assert type(caught.value) is case.error
    message = str(caught.value)
    assert len(message) < 500
    assert message.isprintable()
    assert message.isascii()


@pytest.mark.parametrize("name", CASES)
def test_refused_before_any_data_is_read(
    name: str,
    copy: Callable[[str], Path],
    geometry: BaseGeometry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(*_: object) -> torch.Tensor:
        pytest.fail("tensor data was read")

    monkeypatch.setattr(TensorFile, "read", read)
    refuse(CASES[name], copy(CASES[name].kind), geometry)


@pytest.mark.parametrize("name", POISONED)
def test_poison_is_refused(name: str, copy: Callable[[str], Path], geometry: BaseGeometry) -> None:
    refuse(POISONED[name], copy(POISONED[name].kind), geometry)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_poison_is_found_in_half_precision(
    dtype: torch.dtype, copy: Callable[[str], Path], geometry: BaseGeometry
) -> None:
    adapter = copy(PAPER)
    set_tensor(DOWNS, lambda tensor: tensor.to(dtype))(adapter)
    load_adapter(adapter, geometry)
    refuse(POISONED[f"nan in {DOWNS}"], adapter, geometry)


@pytest.mark.parametrize("kind", [PAPER, EXPLICIT, PEFT, PEFT_EXPLICIT])
def test_undamaged_copies_load(
    kind: str, copy: Callable[[str], Path], geometry: BaseGeometry
) -> None:
    assert load_adapter(copy(kind), geometry).manifest.num_parameters > 0


@pytest.mark.parametrize(
    "path",
    [
        "missing",
        "../missing",
        "x\0y",
        "a" * 300,
        "base/config.json",
        "~root/x",
        "n\u0308" * 100,
        "x\\..\\y",
    ],
)
def test_no_directory_there(path: str, originals: Path, geometry: BaseGeometry) -> None:
    with pytest.raises(AdapterNotFoundError) as caught:
        load_adapter(originals / path, geometry)
    assert str(caught.value).isascii()


@pytest.mark.parametrize(
    "limits",
    [
        AdapterLimits(max_injection_rank=7),
        AdapterLimits(max_gate_size=5),
        AdapterLimits(max_intermediate_size=100),
        AdapterLimits(max_heads=3),
    ],
)
@pytest.mark.parametrize("kind", [PAPER, PEFT])
def test_server_limits_hold(
    kind: str, limits: AdapterLimits, originals: Path, geometry: BaseGeometry
) -> None:
    with pytest.raises(AdapterLimitError, match="the server allows"):
        load_adapter(originals / kind, geometry, limits)


@pytest.mark.parametrize(
    "limits",
    [
        AdapterLimits(max_file_bytes=1000),
        AdapterLimits(max_header_bytes=100),
        AdapterLimits(max_tensors=3),
    ],
)
def test_file_limits_hold(limits: AdapterLimits, originals: Path, geometry: BaseGeometry) -> None:
    with pytest.raises(AdapterFileError, match="over the limit"):
        load_adapter(originals / PAPER, geometry, limits)
