"""Untrusted directories and uploads: bounded, regular files of known names, nothing left after a failure."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from shadow_runtime.errors import (
    AdapterFileError,
    AdapterLimitError,
    AdapterNotFoundError,
    ShadowError,
    StorageError,
)
from shadow_runtime.store import ArtifactStore
from shadow_runtime.store.budget import CANONICAL_FILE

DIGEST = "sha256:" + "ab" * 32
TENSORS = "shadow_adapter.safetensors"
LIMIT = 1 << 20


def staging_of(store: ArtifactStore) -> list[Path]:
    return list((store.root / "staging").iterdir())


def replace(source: Path, make: Callable[[Path], Any], name: str = TENSORS) -> None:
    (source / name).unlink()
    make(source / name)


def refuse(
    store: ArtifactStore, source: Path, error: type[ShadowError], message: str, **kwargs: Any
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(error, match=message) as caught:
        store.stage_directory(source, source_label="x", **kwargs)
    assert type(caught.value) is error
    assert staging_of(store) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_unknown_files_are_not_copied(store: ArtifactStore, source: Path) -> None:
    for name in ("README.md", "optimizer.pt", "tokenizer.json", "backbone_config.json"):
        (source / name).write_text("x")
    (source / "sub").mkdir()
    staged = store.stage_directory(source, source_label="x")
    assert sorted(os.listdir(staged.path)) == ["shadow_adapter.safetensors", "shadow_config.json"]


def test_a_trainers_base_weights_are_not_copied(store: ArtifactStore, source: Path) -> None:
    (source / "model.safetensors").write_bytes(b"x" * 100)
    staged = store.stage_directory(source, source_label="x")
    assert TENSORS in os.listdir(staged.path)
    assert "model.safetensors" not in os.listdir(staged.path)
    (source / TENSORS).unlink()
    staged = store.stage_directory(source, source_label="x")
    assert "model.safetensors" in os.listdir(staged.path)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.symlink_to("shadow_config.json"),
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: path.symlink_to("/nowhere"),
        os.mkfifo,
        os.mkdir,
    ],
    ids=["link inside", "link outside", "broken link", "FIFO", "directory"],
)
@pytest.mark.parametrize("name", [TENSORS, "shadow_config.json"])
def test_only_regular_files(
    store: ArtifactStore, source: Path, make: Callable[[Path], Any], name: str
) -> None:
    replace(source, make, name)
    refuse(store, source, AdapterFileError, "regular")


def test_a_device_is_not_regular(store: ArtifactStore, source: Path) -> None:
    try:
        replace(source, lambda path: os.mknod(path, 0o20600, os.makedev(1, 5)))
    except PermissionError:
        pytest.skip("only root makes device nodes")
    refuse(store, source, AdapterFileError, "regular|unreadable")


def test_sparse_giant(store: ArtifactStore, source: Path) -> None:
    os.truncate(source / TENSORS, 1 << 40)
    refuse(store, source, AdapterFileError, "over the limit")


def test_large_config(store: ArtifactStore, source: Path) -> None:
    os.truncate(source / "shadow_config.json", LIMIT + 1)
    refuse(store, source, AdapterFileError, "over the limit")


def test_files_that_are_too_large_together(tmp_path: Path, source: Path) -> None:
    store = ArtifactStore(tmp_path / "store", max_file_bytes=5 << 20)
    os.truncate(source / TENSORS, 5 << 20)
    store.stage_directory(source, source_label="x").discard()
    (source / "shadow_modules.safetensors").touch()
    os.truncate(source / "shadow_modules.safetensors", 5 << 20)
    refuse(store, source, AdapterLimitError, "together")


def test_largest_file_passes(store: ArtifactStore, source: Path) -> None:
    (source / TENSORS).write_bytes(os.urandom(LIMIT))
    staged = store.stage_directory(source, source_label="x")
    assert (staged.path / TENSORS).read_bytes() == (source / TENSORS).read_bytes()
    (source / TENSORS).write_bytes(bytes(LIMIT + 1))
    with pytest.raises(AdapterFileError, match="over the limit"):
        store.stage_directory(source, source_label="x")


def test_only_a_pickle(store: ArtifactStore, source: Path) -> None:
    (source / TENSORS).rename(source / "shadow_adapter.pt")
    refuse(store, source, AdapterFileError, "pickle.*save_pretrained")


@pytest.mark.parametrize("path", ["missing", "a" * 300, "x\0y", "source/shadow_config.json"])
def test_no_directory(store: ArtifactStore, source: Path, path: str) -> None:
    refuse(store, source.parent / path, AdapterNotFoundError, "no adapter directory")


def test_a_backbone_config_that_is_not_there(store: ArtifactStore, source: Path) -> None:
    refuse(store, source, AdapterFileError, "no file", backbone_config=source / "missing.json")


@pytest.mark.parametrize(
    ("num_bytes", "message"), [(3, "shorter"), (9, "changed its size")], ids=["shrinks", "grows"]
)
def test_a_file_that_changes_while_it_is_copied(
    store: ArtifactStore,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_bytes: int,
    message: str,
) -> None:
    copy = os.copy_file_range

    def change_first(source_fd: int, target: int, count: int) -> int:
        if os.path.samestat(os.fstat(source_fd), os.stat(source / TENSORS)):
            os.truncate(source / TENSORS, num_bytes)
        return copy(source_fd, target, count)

    monkeypatch.setattr(os, "copy_file_range", change_first)
    refuse(store, source, AdapterFileError, message)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", ["copy_file_range", "open", "mkdir"])
def test_a_disk_that_fails(
    store: ArtifactStore, source: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    original = getattr(os, call)

    def fail(*args: Any, **kwargs: Any) -> Any:
        if call == "open" and not args[1] & os.O_CREAT:
            return original(*args, **kwargs)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    refuse(store, source, StorageError, os.strerror(number))


def test_a_commit_on_a_disk_that_fails_keeps_the_staged_files(
    store: ArtifactStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = store.stage_directory(source, source_label="x")

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StorageError, match="cannot keep"):
            store.commit(staged, "sha256:" + "0" * 64)
    assert staged.path.exists()
    staged.discard()
    assert staging_of(store) == []


@pytest.mark.parametrize("answer", [errno.EXDEV, errno.EINVAL, 0], ids=["EXDEV", "EINVAL", "zero"])
def test_file_systems_that_cannot_copy(
    store: ArtifactStore, source: Path, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    data = os.urandom(LIMIT)
    (source / TENSORS).write_bytes(data)

    def cannot(*_: Any) -> int:
        if answer:
            raise OSError(answer, os.strerror(answer))
        return 0

    monkeypatch.setattr(os, "copy_file_range", cannot)
    staged = store.stage_directory(source, source_label="x")
    assert (staged.path / TENSORS).read_bytes() == data


def test_a_canonical_file_is_kept_when_something_was_written(
    store: ArtifactStore, source: Path
) -> None:
    staged = store.stage_directory(source, source_label="x")
    num_bytes = staged.num_bytes
    with staged.canonical_file() as target:
        assert target.max_bytes == 2 * num_bytes
        os.write(target.descriptor, b"canonical")
    stored = store.commit(staged, DIGEST)
    assert (stored.path / CANONICAL_FILE).read_bytes() == b"canonical"
    assert stored.num_bytes == num_bytes + len(b"canonical") == staged.num_bytes


def test_a_canonical_file_that_stays_empty_goes(store: ArtifactStore, source: Path) -> None:
    staged = store.stage_directory(source, source_label="x")
    num_bytes = staged.num_bytes
    with staged.canonical_file():
        pass
    assert not (store.commit(staged, DIGEST).path / CANONICAL_FILE).exists()
    assert staged.num_bytes == num_bytes


def test_nobody_can_bring_a_canonical_file(store: ArtifactStore, source: Path) -> None:
    (source / CANONICAL_FILE).write_bytes(b"mine")
    staged = store.stage_directory(source, source_label="x")
    assert not (staged.path / CANONICAL_FILE).exists()
    staged.discard()
    session = store.begin_upload()
    with pytest.raises(AdapterFileError):
        session.open(CANONICAL_FILE)
    session.discard()


def test_progress_counts_every_byte(tmp_path: Path, source: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    (source / TENSORS).write_bytes(bytes(40 << 20))
    seen: list[Mapping[str, Any]] = []
    staged = store.stage_directory(
        source, source_label="x", progress=lambda event, details: seen.append({event: details})
    )
    counts = [event["reading"]["num_bytes"] for event in seen]
    assert counts == sorted(counts)
    assert counts[-1] == staged.num_bytes == (40 << 20) + 2
    assert len(counts) >= 4
    assert {event["reading"]["total_bytes"] for event in seen} == {staged.num_bytes}


def test_a_caller_that_raises_in_progress_leaves_nothing(
    store: ArtifactStore, source: Path
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.stage_directory(source, source_label="x", progress=stop)
    assert staging_of(store) == []


def test_upload_is_staged_as_it_came(store: ArtifactStore) -> None:
    session = store.begin_upload()
    with session.open("shadow_config.json") as writer:
        writer.write(b"{")
        writer.write(b"}")
    with session.open(TENSORS) as writer:
        writer.write(b"tensors")
    staged = session.finish("upload")
    assert (staged.num_bytes, staged.source, staged.backbone_config) == (9, "upload", None)
    assert (staged.path / "shadow_config.json").read_bytes() == b"{}"
    assert (staged.path / TENSORS).read_bytes() == b"tensors"
    assert store.commit(staged, "sha256:" + "1" * 64).num_bytes == 9


def test_an_uploaded_backbone_config_is_kept_apart(store: ArtifactStore) -> None:
    session = store.begin_upload()
    for writer, data in (
        (session.open_backbone_config(), b'{"own": 1}'),
        (session.open("config.json"), b"{}"),
        (session.open(TENSORS), b"tensors"),
    ):
        with writer:
            writer.write(data)
    staged = session.finish("upload")
    assert staged.backbone_config is not None
    assert staged.backbone_config.read_bytes() == b'{"own": 1}'
    assert (staged.path / "config.json").read_bytes() == b"{}"
    assert staged.num_bytes == 19
    stored = store.commit(staged, "sha256:" + "2" * 64)
    assert stored.backbone_config == stored.path / "backbone_config.json"


def test_an_uploaded_backbone_config_comes_once_and_not_alone(store: ArtifactStore) -> None:
    session = store.begin_upload()
    session.open_backbone_config().write(b"{}")
    with pytest.raises(AdapterFileError, match="twice"):
        session.open_backbone_config()
    with pytest.raises(AdapterFileError, match="no file"):
        session.finish("upload")
    assert staging_of(store) == []


def test_an_uploaded_backbone_config_is_as_small_as_other_configs(tmp_path: Path) -> None:
    session = ArtifactStore(tmp_path / "store", max_file_bytes=4 << 20).begin_upload()
    writer = session.open_backbone_config()
    writer.write(bytes(1 << 20))
    with pytest.raises(AdapterFileError, match="over the limit"):
        writer.write(b"x")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "README.md",
        "../shadow_config.json",
        "/etc/passwd",
        "shadow_config.json\0",
        "x" * 300,
        "adapter_model.bin",
        "backbone_config.json",
        "shadow_con\ufb01g.json",
    ],
)
def test_upload_of_another_name(store: ArtifactStore, name: str) -> None:
    session = store.begin_upload()
    with pytest.raises(AdapterFileError) as caught:
        session.open(name)
    assert str(caught.value).isascii()
    session.discard()
    assert staging_of(store) == []


def test_upload_of_a_name_twice(store: ArtifactStore) -> None:
    session = store.begin_upload()
    session.open(TENSORS)
    with pytest.raises(AdapterFileError, match="twice"):
        session.open(TENSORS)


def test_upload_over_the_limit(store: ArtifactStore) -> None:
    session = store.begin_upload()
    writer = session.open(TENSORS)
    writer.write(bytes(LIMIT))
    with pytest.raises(AdapterFileError, match="over the limit"):
        writer.write(b"x")
    session.discard()
    assert staging_of(store) == []


def test_upload_that_is_too_large_together(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store", max_file_bytes=5 << 20)
    session = store.begin_upload()
    session.open(TENSORS).write(bytes(5 << 20))
    with pytest.raises(AdapterLimitError, match="together"):
        session.open("adapter_model.safetensors").write(bytes((4 << 20) + 1))


def test_upload_on_a_full_disk(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    session = store.begin_upload()
    writer = session.open(TENSORS)

    def fail(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        with pytest.raises(StorageError, match="No space"):
            writer.write(b"x")
    session.discard()
    assert staging_of(store) == []


def test_empty_upload(store: ArtifactStore) -> None:
    with pytest.raises(AdapterFileError, match="no file"):
        store.begin_upload().finish("upload")
    assert staging_of(store) == []


def test_write_after_the_end(store: ArtifactStore) -> None:
    session = store.begin_upload()
    writer = session.open(TENSORS)
    session.finish("upload")
    with pytest.raises(AdapterFileError, match="ended"):
        writer.write(b"x")
