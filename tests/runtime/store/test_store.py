"""Staging, committing, finding and collecting, also beside other servers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shadow_runtime.errors import StorageError
from shadow_runtime.store import ArtifactStore, StagedArtifact
from shadow_runtime.store import store as store_module

DIGEST = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32


def stage(store: ArtifactStore, source: Path) -> StagedArtifact:
    return store.stage_directory(source, source_label="directory x")


def staging_of(store: ArtifactStore) -> list[Path]:
    return list((store.root / "staging").iterdir())


def make_old(path: Path, seconds: float) -> None:
    changed = path.stat().st_mtime - seconds
    for entry in (path, *path.rglob("*")):
        os.utime(entry, (changed, changed))


def test_staged_files_are_copies(store: ArtifactStore, source: Path) -> None:
    staged = stage(store, source)
    assert {path.name: path.read_bytes() for path in staged.path.iterdir()} == {
        "shadow_config.json": b"{}",
        "shadow_adapter.safetensors": b"tensors",
    }
    assert (staged.num_bytes, staged.source) == (9, "directory x")
    (source / "shadow_adapter.safetensors").write_bytes(b"changed")
    assert (staged.path / "shadow_adapter.safetensors").read_bytes() == b"tensors"


def test_discard_leaves_nothing_and_may_be_repeated(store: ArtifactStore, source: Path) -> None:
    staged = stage(store, source)
    staged.discard()
    staged.discard()
    assert staging_of(store) == []


def test_committed_files_are_found_by_digest(store: ArtifactStore, source: Path) -> None:
    assert store.find(DIGEST) is None
    stored = store.commit(stage(store, source), DIGEST)
    assert stored == store.find(DIGEST)
    assert stored.path == store.root / "objects" / "ab" / ("ab" * 32)
    assert (stored.num_bytes, stored.backbone_config) == (9, None)
    assert staging_of(store) == []


def test_discard_after_commit_keeps_the_bytes(store: ArtifactStore, source: Path) -> None:
    staged = stage(store, source)
    store.commit(staged, DIGEST)
    staged.discard()
    assert store.find(DIGEST) is not None


def test_a_discard_under_way_and_a_commit_do_not_share_the_files(
    store: ArtifactStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publish that is cancelled discards the files while another thread keeps them: all of them or none."""
    staged = stage(store, source)
    outcome: list[object] = []

    def commit() -> None:
        try:
            outcome.append(store.commit(staged, DIGEST))
        except StorageError as error:
            outcome.append(error)

    committing = threading.Thread(target=commit)

    def remove_slowly(path: Path, ignore_errors: bool) -> None:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        committing.start()
        committing.join(0.5)  # a commit that does not wait is done in that time
        for name in os.listdir(directory):
            os.unlink(name, dir_fd=directory)
        os.close(directory)
        os.rmdir(path)

    monkeypatch.setattr("shadow_runtime.store.staging.shutil.rmtree", remove_slowly)
    staged.discard()
    committing.join()
    assert isinstance(outcome[0], StorageError)
    assert store.find(DIGEST) is None
    assert staging_of(store) == []


def test_discarded_files_are_not_kept_and_take_no_more(store: ArtifactStore, source: Path) -> None:
    staged = stage(store, source)
    staged.discard()
    with pytest.raises(StorageError):
        store.commit(staged, DIGEST)
    with pytest.raises(StorageError, match="discarded"), staged.canonical_file():
        pass
    assert store.find(DIGEST) is None


def test_another_store_of_the_root_finds_the_bytes(store: ArtifactStore, source: Path) -> None:
    stored = store.commit(stage(store, source), DIGEST)
    assert ArtifactStore(store.root).find(DIGEST) == stored


def test_second_commit_of_a_digest_keeps_the_first(store: ArtifactStore, source: Path) -> None:
    first = store.commit(stage(store, source), DIGEST)
    inode = first.path.stat().st_ino
    assert store.commit(stage(store, source), DIGEST) == first
    assert first.path.stat().st_ino == inode
    assert staging_of(store) == []


def test_a_damaged_object_is_replaced(store: ArtifactStore, source: Path) -> None:
    first = store.commit(stage(store, source), DIGEST)
    file = next(iter(sorted(first.path.iterdir())))
    right = file.read_bytes()
    with file.open("rb") as reader:
        file.write_bytes(b"damaged")
        second = store.commit(stage(store, source), DIGEST, replace=True)
        assert reader.read() == b"damaged"  # who reads it goes on
    assert second.path == first.path
    assert file.read_bytes() == right
    assert staging_of(store) == []


def test_operators_backbone_config_is_kept_apart(
    store: ArtifactStore, source: Path, tmp_path: Path
) -> None:
    (source / "config.json").write_text('{"own": 1}')
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "config.json").write_text('{"operator": 1}')
    for given in (tmp_path / "backbone", tmp_path / "backbone" / "config.json"):
        staged = store.stage_directory(source, given, source_label="x")
        assert staged.backbone_config is not None
        assert staged.backbone_config.read_text() == '{"operator": 1}'
        assert (staged.path / "config.json").read_text() == '{"own": 1}'
        stored = store.commit(staged, DIGEST)
        assert stored.backbone_config == stored.path / "backbone_config.json"


@pytest.mark.parametrize("digest", ["", "sha256:../../x", "sha256:" + "AB" * 32, "ab" * 32])
def test_what_is_no_digest_names_no_path(store: ArtifactStore, source: Path, digest: str) -> None:
    staged = stage(store, source)
    for call in (lambda: store.commit(staged, digest), lambda: store.find(digest)):
        with pytest.raises(StorageError, match="not a digest"):
            call()


def test_remove(store: ArtifactStore, source: Path) -> None:
    stored = store.commit(stage(store, source), DIGEST)
    assert store.remove(DIGEST)
    assert not stored.path.exists()
    assert not store.remove(DIGEST)
    assert staging_of(store) == []


def test_collect_takes_what_is_unreferenced(store: ArtifactStore, source: Path) -> None:
    for digest in (DIGEST, OTHER):
        store.commit(stage(store, source), digest)
    assert store.collect({OTHER}, 0) == [DIGEST]
    assert store.find(DIGEST) is None
    assert store.find(OTHER) is not None
    assert staging_of(store) == []


def test_collect_counts_from_when_the_last_reference_went(
    store: ArtifactStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(store_module.time, "monotonic", lambda: now)
    make_old(store.commit(stage(store, source), DIGEST).path, 10_000)
    assert store.collect({DIGEST}, 60) == []
    assert store.collect((), 60) == []
    now = 130.0
    assert store.collect({DIGEST}, 60) == []
    assert store.collect((), 60) == []
    now = 189.0
    assert store.collect((), 60) == []
    now = 190.0
    assert store.collect((), 60) == [DIGEST]


def test_collect_spares_what_another_server_has_just_committed(
    store: ArtifactStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old(store.commit(stage(store, source), DIGEST).path, 10_000)
    store.collect((), 60)
    ArtifactStore(store.root).commit(stage(store, source), DIGEST)
    monkeypatch.setattr(store_module.time, "monotonic", lambda: 1e12)
    assert store.collect((), 60) == []
    assert store.find(DIGEST) is not None


def test_age_counts_from_the_commit_not_from_the_copy(
    store: ArtifactStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = stage(store, source)
    make_old(staged.path, 10_000)
    store.commit(staged, DIGEST)
    store.collect((), 60)
    monkeypatch.setattr(store_module.time, "monotonic", lambda: 1e12)
    assert store.collect((), 60) == []


def test_collect_spares_staging_that_is_in_use(store: ArtifactStore, source: Path) -> None:
    staged = stage(store, source)
    make_old(staged.path, 10_000)
    ArtifactStore(store.root).collect((), 60)
    assert staged.path.exists()


def test_collect_removes_what_a_dead_server_left(store: ArtifactStore, source: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path\n"
        "from shadow_runtime.store import ArtifactStore\n"
        "ArtifactStore(Path(sys.argv[1])).stage_directory(Path(sys.argv[2]), source_label='x')\n"
        "os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", script, store.root, source], check=False)
    (left,) = staging_of(store)
    store.collect((), 60)
    assert left.exists()
    make_old(left, 100)
    store.collect((), 60)
    assert not left.exists()


def test_strange_entries_are_left_alone(store: ArtifactStore) -> None:
    (store.root / "objects" / "lost+found").mkdir()
    (store.root / "objects" / "ab").mkdir()
    (store.root / "objects" / "ab" / "notes").mkdir()
    assert store.collect((), 0) == []


def test_servers_that_commit_and_collect_one_digest_never_lose_it(
    store: ArtifactStore, source: Path
) -> None:
    lost: list[int] = []
    is_over = threading.Event()

    def collect() -> None:
        collector = ArtifactStore(store.root)
        while not is_over.is_set():
            collector.collect((), 60)

    def publish() -> None:
        publisher = ArtifactStore(store.root)
        for attempt in range(30):
            publisher.commit(stage(publisher, source), DIGEST)
            if publisher.find(DIGEST) is None:
                lost.append(attempt)

    collecting = threading.Thread(target=collect)
    publishing = [threading.Thread(target=publish) for _ in range(2)]
    for thread in (collecting, *publishing):
        thread.start()
    for thread in publishing:
        thread.join()
    is_over.set()
    collecting.join()
    assert lost == []
    assert staging_of(store) == []


def test_a_crash_at_any_point_of_a_commit_leaves_all_or_nothing(
    store: ArtifactStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    def crash_at(left: int) -> bool:
        with monkeypatch.context() as patch:
            for name in ("fsync", "rename", "utime"):
                patch.setattr(os, name, counted(getattr(os, name)))
            calls.clear()
            limit[0] = left
            try:
                store.commit(stage(store, source), DIGEST)
            except Crash:
                return True
            return False

    calls: list[str] = []
    limit = [0]

    def counted(call):  # type: ignore[no-untyped-def]
        def wrapped(*args, **kwargs):  # type: ignore[no-untyped-def]
            calls.append(call.__name__)
            if len(calls) > limit[0]:
                raise Crash
            return call(*args, **kwargs)

        return wrapped

    outcomes = []
    for left in range(100):
        has_crashed = crash_at(left)
        stored = store.find(DIGEST)
        outcomes.append(stored is not None)
        assert stored is None or stored.num_bytes == 9
        if not has_crashed:
            break
        store.remove(DIGEST)
    assert not has_crashed
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {True, False}
    assert calls.index("rename") > calls.index("fsync")
    assert calls[-2:] == ["fsync", "fsync"]


def test_a_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="be made"):
        ArtifactStore(tmp_path / "file" / "store")
