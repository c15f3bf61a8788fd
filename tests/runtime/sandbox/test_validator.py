"""What the sandbox says about adapters, and that hostile ones cost the server nothing."""

from __future__ import annotations

import dataclasses
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from adapter_damage import poison, set_header, set_tensor
from malicious_adapter import CORPUS, KINDS, POISONED
from reference_adapters import copy_adapter
from sandbox_process import anonymous_bytes, children_of, num_descriptors, num_threads
from shadow_runtime.artifact import load_adapter
from shadow_runtime.artifact.canonical_file import CanonicalFile
from shadow_runtime.catalog.fingerprint import base_fingerprint
from shadow_runtime.config import ShadowConfig
from shadow_runtime.errors import AdapterLimitError, AdapterNotFoundError, ShadowError
from shadow_runtime.sandbox import SandboxValidator
from shadow_runtime.slots.layout import ShardPlan, slot_bytes
from shadow_runtime.store import ArtifactStore, CanonicalTarget
from shadow_runtime.types import AdapterLimits, BaseGeometry

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_SECONDS = 5.0


@pytest.mark.parametrize("kind", KINDS)
async def test_manifest_is_the_one_of_reading_in_process(
    sandbox: SandboxValidator, originals: Path, geometry: BaseGeometry, kind: str
) -> None:
    expected = load_adapter(originals / kind, geometry).manifest
    assert await sandbox.validate(str(originals / kind)) == expected


async def test_an_operators_backbone_config_is_read(
    sandbox: SandboxValidator, originals: Path, geometry: BaseGeometry, tmp_path: Path
) -> None:
    adapter = copy_adapter(originals / "paper_explicit", tmp_path / "adapter")
    config = (adapter / "config.json").rename(tmp_path / "backbone.json")
    manifest = await sandbox.validate(str(adapter), str(config))
    assert manifest.backbone_config == str(config)
    expected = load_adapter(originals / "paper_explicit", geometry).manifest
    assert manifest.digest == expected.digest


async def test_an_uploaded_backbone_config_is_read(
    sandbox: SandboxValidator, originals: Path, geometry: BaseGeometry, tmp_path: Path
) -> None:
    session = ArtifactStore(tmp_path / "store").begin_upload()
    for path in sorted((originals / "paper_explicit").iterdir()):
        is_config = path.name == "config.json"
        writer = session.open_backbone_config() if is_config else session.open(path.name)
        with writer:
            writer.write(path.read_bytes())
    staged = session.finish("upload")
    assert not (staged.path / "config.json").exists()
    manifest = await sandbox.validate(str(staged.path), str(staged.backbone_config))
    assert manifest.digest == load_adapter(originals / "paper_explicit", geometry).manifest.digest
    with pytest.raises(ShadowError):
        await sandbox.validate(str(staged.path))
    staged.discard()


@pytest.mark.parametrize("kind", KINDS)
async def test_the_canonical_file_is_that_of_the_adapter(
    sandbox: SandboxValidator, originals: Path, geometry: BaseGeometry, kind: str, tmp_path: Path
) -> None:
    expected = load_adapter(originals / kind, geometry)
    with (tmp_path / "x").open("wb") as file:
        target = CanonicalTarget(file.fileno(), 1 << 30)
        manifest = await sandbox.validate(str(originals / kind), None, target)
    assert manifest == expected.manifest
    with (
        CanonicalFile(os.open(tmp_path / "x", os.O_RDONLY), geometry, AdapterLimits()) as file,
        ThreadPoolExecutor(1) as threads,
    ):
        found = file.read(lambda *_: None, threads)
    for name, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[name], tensor), name


async def test_an_adapter_is_valid_also_where_its_canonical_file_is_too_large(
    sandbox: SandboxValidator, originals: Path, geometry: BaseGeometry, tmp_path: Path
) -> None:
    with (tmp_path / "x").open("wb") as file:
        target = CanonicalTarget(file.fileno(), 1000)
        manifest = await sandbox.validate(str(originals / "peft_mirror"), None, target)
    assert manifest == load_adapter(originals / "peft_mirror", geometry).manifest
    assert (tmp_path / "x").stat().st_size == 0


async def test_a_missing_directory_is_not_found(sandbox: SandboxValidator, tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFoundError, match="no adapter directory"):
        await sandbox.validate(str(tmp_path / "missing"))


@pytest.mark.parametrize("path", ["x\0y", "\ud800", "a" * 5000, ""])
async def test_a_path_that_cannot_be_one_is_not_found(sandbox: SandboxValidator, path: str) -> None:
    with pytest.raises(ShadowError) as caught:
        await sandbox.validate(path)
    assert caught.value.code in ("adapter_not_found", "adapter_file_invalid")


@pytest.mark.parametrize("name", CORPUS)
async def test_hostile_adapter(name: str, sandbox: Any, originals: Path, tmp_path: Path) -> None:
    case = CORPUS[name]
    adapter = case.build(originals, tmp_path / "adapter")
    pid, before = sandbox.zygote_pid, anonymous_bytes(sandbox.zygote_pid)
    started = time.monotonic()
    with pytest.raises(ShadowError, match=case.message) as caught:
        await sandbox.validate(str(adapter))
    assert time.monotonic() - started < MAX_SECONDS
    assert type(caught.value) is case.error
    assert sandbox.zygote_pid == pid
    assert anonymous_bytes(sandbox.zygote_pid) - before < 1 << 20


@pytest.mark.parametrize("name", CORPUS)
async def test_hostile_adapter_through_the_store(
    name: str, sandbox: Any, originals: Path, tmp_path: Path
) -> None:
    case, store = CORPUS[name], ArtifactStore(tmp_path / "store")
    adapter = case.build(originals, tmp_path / "adapter")

    async def publish() -> None:
        staged = store.stage_directory(adapter, source_label="x")
        try:
            await sandbox.validate(str(staged.path))
        finally:
            staged.discard()

    with pytest.raises(ShadowError) as caught:
        await publish()
    assert caught.value.code == case.error.code
    assert list((store.root / "staging").iterdir()) == []


async def test_report_of_a_sound_adapter(
    sandbox: SandboxValidator, originals: Path, geometry: BaseGeometry, config: ShadowConfig
) -> None:
    report = await sandbox.report(str(originals / "peft_mirror"))
    assert report.is_valid
    assert report.manifest == load_adapter(originals / "peft_mirror", geometry).manifest
    assert (report.error_code, report.error_message) == (None, None)
    names = [slot_class.name for slot_class in config.slot_classes]
    assert report.slot_class in names
    whole = ShardPlan((0, 4), has_backbone=True)
    expected = slot_bytes(config, names.index(report.slot_class), 64, whole, 2)
    assert report.slot_bytes == expected
    assert report.base_fingerprint == base_fingerprint(geometry)
    assert 0 < report.seconds < MAX_SECONDS
    size = (originals / "peft_mirror" / "adapter_model.safetensors").stat().st_size
    assert 0.9 * size < sum(tensor.num_bytes for tensor in report.tensors) < size
    assert {tensor.dtype for tensor in report.tensors} == {"F32"}
    assert all(tensor.is_finite for tensor in report.tensors)


async def test_report_names_the_poisoned_tensor(
    sandbox: SandboxValidator, originals: Path, tmp_path: Path
) -> None:
    adapter = copy_adapter(originals / "paper_implicit", tmp_path / "adapter")
    poison("injection_ups", float("nan"))(adapter)
    report = await sandbox.report(str(adapter))
    assert not report.is_valid
    assert report.error_code == "adapter_tensor_invalid"
    assert report.manifest is None
    poisoned = [tensor.name for tensor in report.tensors if not tensor.is_finite]
    assert poisoned == ["shadow_injection_model.injection_ups"]
    assert len(report.tensors) > 10


async def test_report_shows_a_dtype_that_is_refused(
    sandbox: SandboxValidator, originals: Path, tmp_path: Path
) -> None:
    adapter = copy_adapter(originals / "paper_implicit", tmp_path / "adapter")
    set_tensor("injection_ups", lambda tensor: tensor.double())(adapter)
    report = await sandbox.report(str(adapter))
    assert report.error_code == "adapter_tensor_invalid"
    (wrong,) = [tensor for tensor in report.tensors if tensor.dtype == "F64"]
    assert (wrong.shape, wrong.is_finite) == ((3, 8, 64), None)


@pytest.mark.parametrize("name", [*list(CORPUS)[::10], *POISONED])
async def test_report_of_a_hostile_adapter_raises_nothing(
    name: str, sandbox: SandboxValidator, originals: Path, tmp_path: Path
) -> None:
    adapter = CORPUS[name].build(originals, tmp_path / "adapter")
    report = await sandbox.report(str(adapter))
    assert report.error_code == CORPUS[name].error.code
    assert report.seconds < MAX_SECONDS


async def test_report_leaves_out_what_is_no_entry(
    sandbox: SandboxValidator, originals: Path, tmp_path: Path
) -> None:
    adapter = copy_adapter(originals / "paper_implicit", tmp_path / "adapter")
    good = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    bad: dict[str, Any] = {
        "number": 1,
        "shape": good | {"shape": [1.5]},
        "long shape": good | {"shape": [1] * 100},
        "dtype": good | {"dtype": None},
        "offsets": good | {"data_offsets": [1]},
    }
    set_header(lambda _: {"good": good} | bad)(adapter)
    report = await sandbox.report(str(adapter))
    assert [tensor.name for tensor in report.tensors] == ["good"]


async def test_report_of_a_missing_directory(sandbox: SandboxValidator, tmp_path: Path) -> None:
    report = await sandbox.report(str(tmp_path / "missing"))
    assert (report.error_code, report.tensors) == ("adapter_not_found", ())


async def test_an_adapter_outside_every_slot_class(
    geometry: BaseGeometry, config: ShadowConfig, originals: Path, limits: dict[str, Any]
) -> None:
    narrow = dataclasses.replace(config, slot_classes=config.slot_classes[1:2])
    validator = SandboxValidator(geometry, narrow, **limits)
    try:
        with pytest.raises(AdapterLimitError, match="fits no slot class"):
            await validator.validate(str(originals / "peft_mirror"))
        report = await validator.report(str(originals / "peft_mirror"))
        assert (report.error_code, report.slot_class) == ("adapter_over_limit", None)
    finally:
        await validator.close()


async def test_fifty_jobs_leave_nothing(sandbox: Any, originals: Path, tmp_path: Path) -> None:
    broken = CORPUS["truncated data"].build(originals, tmp_path / "broken")
    await sandbox.validate(str(originals / "peft_mirror"))

    def counts() -> tuple[int, ...]:
        pid = sandbox.zygote_pid
        return num_descriptors(os.getpid()), num_descriptors(pid), len(children_of(pid))

    before, memory = counts(), anonymous_bytes(sandbox.zygote_pid)
    for _ in range(25):
        await sandbox.validate(str(originals / "peft_mirror"))
        with pytest.raises(ShadowError):
            await sandbox.validate(str(broken))
    assert counts() == before
    assert before[2] == 0
    assert anonymous_bytes(sandbox.zygote_pid) - memory < 1 << 20
    assert num_threads(sandbox.zygote_pid) == 1
