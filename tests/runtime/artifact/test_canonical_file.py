"""The canonical file gives back what was validated, and believes nothing that it says."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from malicious_adapter import KINDS
from shadow_runtime.artifact import CanonicalAdapter, load_adapter
from shadow_runtime.artifact import digest as digest_module
from shadow_runtime.artifact.canonical import canonical_shapes
from shadow_runtime.artifact.canonical_file import CanonicalFile, write_canonical
from shadow_runtime.errors import (
    AdapterError,
    AdapterFileError,
    AdapterLimitError,
    AdapterMismatchError,
    AdapterTensorError,
    DigestMismatchError,
)
from shadow_runtime.types import AdapterLimits, BaseGeometry

LIMITS = AdapterLimits()

Change = Callable[[dict[str, torch.Tensor], dict[str, Any]], None]


@pytest.fixture(scope="module")
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


@pytest.fixture(params=KINDS)
def adapter(
    request: pytest.FixtureRequest, originals: Path, geometry: BaseGeometry
) -> CanonicalAdapter:
    return load_adapter(originals / request.param, geometry)


@pytest.fixture
def paper(originals: Path, geometry: BaseGeometry) -> CanonicalAdapter:
    return load_adapter(originals / "paper_implicit", geometry)


def write(adapter: CanonicalAdapter, path: Path, max_bytes: int = 1 << 30) -> bool:
    with path.open("wb") as file:
        return write_canonical(adapter, file.fileno(), max_bytes)


def read(
    path: Path,
    base: BaseGeometry,
    threads: Executor,
    *,
    place: Any = lambda *_: None,
    limits: AdapterLimits = LIMITS,
) -> CanonicalAdapter:
    with CanonicalFile(os.open(path, os.O_RDONLY), base, limits) as file:
        return file.read(place, threads)


def test_what_is_read_is_what_was_written(
    adapter: CanonicalAdapter, geometry: BaseGeometry, threads: Executor, tmp_path: Path
) -> None:
    assert write(adapter, tmp_path / "x")
    found = read(tmp_path / "x", geometry, threads)
    assert found.manifest == adapter.manifest
    assert found.tensors.keys() == adapter.tensors.keys()
    for name, tensor in adapter.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor), name


def test_other_readers_of_safetensors_understand_it(
    paper: CanonicalAdapter, tmp_path: Path
) -> None:
    assert write(paper, tmp_path / "x")
    with safe_open(tmp_path / "x", "pt") as file:
        assert torch.equal(file.get_tensor("boundary.up"), paper.tensors["boundary.up"])
        assert json.loads(file.metadata()["manifest"])["digest"] == paper.manifest.digest


def test_shapes_are_those_of_the_manifest(
    adapter: CanonicalAdapter, geometry: BaseGeometry
) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in adapter.tensors.items()}
    assert canonical_shapes(adapter.manifest, geometry.hidden_size) == shapes


@pytest.mark.parametrize("piece_bytes", [8, 64, 1 << 22])
def test_tensors_are_read_where_they_are_wanted_in_pieces(
    paper: CanonicalAdapter,
    geometry: BaseGeometry,
    threads: Executor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    piece_bytes: int,
) -> None:
    from shadow_runtime.artifact import canonical_file

    for module in (digest_module, canonical_file):
        monkeypatch.setattr(module, "PIECE_BYTES", piece_bytes)
    digest = digest_module.compute_digest(digest_module.hashed_maths(paper.manifest), paper.tensors)
    fields = paper.manifest.to_dict() | {"digest": digest}
    paper = CanonicalAdapter(type(paper.manifest).from_dict(fields), paper.tensors)
    assert write(paper, tmp_path / "x")
    wanted = torch.full(paper.tensors["boundary.up"].shape, torch.nan)

    def place(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor | None:
        assert (shape, dtype) == (tuple(paper.tensors[name].shape), paper.tensors[name].dtype)
        return wanted if name == "boundary.up" else None

    found = read(tmp_path / "x", geometry, threads, place=place)
    assert found.tensors["boundary.up"] is wanted
    assert torch.equal(wanted, paper.tensors["boundary.up"])
    assert torch.equal(found.tensors["boundary.down"], paper.tensors["boundary.down"])


def test_nothing_is_left_of_a_file_that_would_be_too_large(
    paper: CanonicalAdapter, tmp_path: Path
) -> None:
    assert write(paper, tmp_path / "x")
    size = (tmp_path / "x").stat().st_size
    assert write(paper, tmp_path / "x", size)
    assert not write(paper, tmp_path / "x", size - 1)
    assert (tmp_path / "x").stat().st_size == 0


def test_nothing_is_left_of_a_file_that_cannot_be_written(
    paper: CanonicalAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shadow_runtime.artifact import canonical_file

    def fill_up(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(canonical_file, "write_all", fill_up)
    assert not write(paper, tmp_path / "x")
    assert (tmp_path / "x").stat().st_size == 0


# What a file says is not believed ----------------------------------------------------------------


def set_element(name: str, value: float) -> Change:
    def change(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
        tensors[name].view(-1)[-1] = value

    return change


def set_field(*path: str, value: Any) -> Change:
    def change(_: dict[str, torch.Tensor], manifest: dict[str, Any]) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return change


def without_tensor(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
    del tensors["boundary.norm_bias"]


def with_tensor(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
    tensors["boundary.other"] = torch.zeros(1)


def with_other_shape(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
    tensors["boundary.up"] = tensors["boundary.up"].transpose(1, 2).contiguous()


def without_field(_: dict[str, torch.Tensor], manifest: dict[str, Any]) -> None:
    del manifest["backbone"]["head_dim"]


DAMAGES: dict[str, tuple[Change, type[Exception]]] = {
    "one element": (set_element("boundary.up", 0.25), DigestMismatchError),
    "NaN": (set_element("boundary.up", torch.nan), AdapterTensorError),
    "-Inf": (set_element("backbone.norm.weight", -torch.inf), AdapterTensorError),
    "a tensor less": (without_tensor, AdapterTensorError),
    "a tensor more": (with_tensor, AdapterTensorError),
    "another shape": (with_other_shape, AdapterTensorError),
    "another scale": (set_field("scale", value=2.0), DigestMismatchError),
    "another activation": (set_field("activation", value="gelu"), DigestMismatchError),
    "other windows": (set_field("backbone", "windows", value=[7]), DigestMismatchError),
    "another digest": (set_field("digest", value="sha256:" + "0" * 64), DigestMismatchError),
    "another rank": (set_field("injection_rank", value=5), AdapterTensorError),
    "a rank that is no number": (set_field("injection_rank", value="4"), AdapterFileError),
    "a rank over the limit": (set_field("injection_rank", value=1 << 40), AdapterLimitError),
    "endless layers": (set_field("backbone", "num_layers", value=1 << 60), AdapterLimitError),
    "a negative size": (set_field("backbone", "vocab_size", value=-1), AdapterFileError),
    "a base of other depth": (set_field("injects", value=[True]), AdapterMismatchError),
    "injects that are no list": (set_field("injects", value=3), AdapterFileError),
    "no head size": (without_field, AdapterFileError),
    "an unknown field": (set_field("surprise", value=1), AdapterFileError),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(
    damage: str, paper: CanonicalAdapter, geometry: BaseGeometry, threads: Executor, tmp_path: Path
) -> None:
    change, error = DAMAGES[damage]
    tensors = {name: tensor.clone() for name, tensor in paper.tensors.items()}
    manifest = json.loads(json.dumps(paper.manifest.to_dict()))
    change(tensors, manifest)
    metadata = {"version": "1", "manifest": json.dumps(manifest)}
    save_file(tensors, tmp_path / "x", metadata)
    with pytest.raises(error):
        read(tmp_path / "x", geometry, threads)


def test_the_undamaged_file_of_that_test_is_taken(
    paper: CanonicalAdapter, geometry: BaseGeometry, threads: Executor, tmp_path: Path
) -> None:
    metadata = {"version": "1", "manifest": json.dumps(paper.manifest.to_dict())}
    save_file(paper.tensors, tmp_path / "x", metadata)
    assert read(tmp_path / "x", geometry, threads).manifest == paper.manifest


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"version": "2", "manifest": "{}"}, {"version": "1"}]
    + [{"version": "1", "manifest": text} for text in ("", "[]", "nul", "[" * 100_000)],
)
def test_a_file_without_usable_manifest_is_refused(
    paper: CanonicalAdapter,
    geometry: BaseGeometry,
    threads: Executor,
    tmp_path: Path,
    metadata: dict[str, str] | None,
) -> None:
    save_file(paper.tensors, tmp_path / "x", metadata)
    with pytest.raises(AdapterFileError):
        read(tmp_path / "x", geometry, threads)


@pytest.mark.parametrize("num_bytes", [0, 7, 100, -1])
def test_a_part_of_a_file_is_refused(
    paper: CanonicalAdapter,
    geometry: BaseGeometry,
    threads: Executor,
    tmp_path: Path,
    num_bytes: int,
) -> None:
    assert write(paper, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(data[:num_bytes])
    with pytest.raises(AdapterError):
        read(tmp_path / "x", geometry, threads)


def test_no_descriptor_stays_open(
    paper: CanonicalAdapter, geometry: BaseGeometry, threads: Executor, tmp_path: Path
) -> None:
    assert write(paper, tmp_path / "x")
    before = len(os.listdir("/proc/self/fd"))
    read(tmp_path / "x", geometry, threads)
    for limits in (AdapterLimits(max_injection_rank=1), AdapterLimits(max_tensors=1)):
        with pytest.raises(AdapterError):
            read(tmp_path / "x", geometry, threads, limits=limits)
    assert len(os.listdir("/proc/self/fd")) == before
