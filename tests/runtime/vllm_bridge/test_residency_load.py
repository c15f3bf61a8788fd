"""Loading into a worker: staged or not, it holds the digest's bytes or leaves everything as it was."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shadow_runtime import errors
from shadow_runtime.artifact import load_adapter
from shadow_runtime.artifact.canonical_file import write_canonical
from shadow_runtime.store.budget import CANONICAL_FILE
from shadow_runtime.vllm_bridge import image_loader
from shadow_runtime.vllm_bridge.request import AdapterSource


@pytest.fixture
def moved(library: Any, tmp_path: Path) -> Any:
    """Return a library whose adapters `a` and `b` are copies that a test may damage."""
    paths = {
        n: Path(shutil.copytree(library.paths[n], tmp_path / n)) if n in "ab" else p
        for n, p in library.paths.items()
    }
    manifests = {n: replace(m, path=str(paths[n])) for n, m in library.manifests.items()}
    return replace(library, paths=paths, manifests=manifests)


def overwrite(library: Any, target: str, source: str) -> None:
    """Put the bytes of another adapter where one was validated."""
    shutil.rmtree(library.paths[target])
    shutil.copytree(library.paths[source], library.paths[target])


# Loading -----------------------------------------------------------------------------------------


def test_loading_answers_at_once_until_the_adapter_is_held(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.stage("a")
    assert worker.residency.list_adapters() == set()
    monkeypatch.setattr(image_loader, "load_adapter", None)
    assert worker.load("a") is True
    assert worker.staged() == frozenset()
    assert worker.residency.list_adapters() == {worker.id_of("a")}
    assert worker.load("a") is True


def test_a_step_takes_what_was_staged(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.stage("a")
    monkeypatch.setattr(image_loader, "load_adapter", None)
    worker.step(["a"])
    assert worker.staged() == frozenset()


def test_reading_happens_once_and_off_the_step_thread(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    may_read = threading.Event()

    def read(*args: Any, **kwargs: Any) -> Any:
        may_read.wait(30)
        threads.append(threading.current_thread().name)
        return load_adapter(*args, **kwargs)

    monkeypatch.setattr(image_loader, "load_adapter", read)
    source = AdapterSource.of(worker.library.manifests["a"])
    assert worker.residency.load(source) is None
    assert worker.residency.load(source) is None
    # A step of another adapter is not held up, nor is another adapter's reading.
    own = AdapterSource.of(worker.library.manifests["own"])
    assert worker.residency.load(own) is None
    worker.step([None])
    may_read.set()
    assert worker.load("a") is True
    assert worker.load("own") is True
    assert len(threads) == 2
    assert all(name.startswith("shadow-loader") for name in threads)


def test_files_that_change_before_they_are_staged_are_reported(moved: Any, worker: Any) -> None:
    worker.library = moved
    overwrite(moved, "a", "b")
    before = worker.snapshot()
    answer = worker.load("a")
    assert isinstance(answer, tuple)
    assert answer[0] == errors.DigestMismatchError.code
    assert worker.digest_of("a") in answer[1]
    assert worker.digest_of("b") in answer[1]
    worker.assert_unchanged(before)


def test_files_that_change_after_they_were_staged_do_not_matter(
    moved: Any, worker: Any, library: Any
) -> None:
    worker.library = moved
    worker.stage("a")
    overwrite(moved, "a", "b")
    worker.add("a")
    worker.library = library
    worker.step(["a"])
    worker.assert_holds(worker.resident()["a"], "a")


def test_files_that_change_before_an_unstaged_load_are_refused(moved: Any, worker: Any) -> None:
    worker.library = moved
    worker.add("b")
    worker.step(["b"])
    overwrite(moved, "a", "c")
    before = worker.snapshot()
    with pytest.raises(errors.DigestMismatchError):
        worker.residency.add_adapter(worker.request("a"))
    worker.assert_unchanged(before)
    # In a step too, and before the step is announced.
    with pytest.raises(errors.DigestMismatchError):
        worker.step(["b", "a"])
    worker.assert_unchanged(before)


@pytest.mark.parametrize("is_staged", [False, True], ids=["direct", "staged"])
def test_a_failing_load_leaves_everything_as_it_was(
    is_staged: bool, moved: Any, worker: Any
) -> None:
    worker.library = moved
    worker.add("b", "own")
    worker.step(["b", None, "own"])
    (moved.paths["a"] / "shadow_adapter.safetensors").write_bytes(b"\x08" + b"\x00" * 7 + b"{}")
    before = worker.snapshot()
    if is_staged:
        worker.stage("a")
    with pytest.raises(errors.AdapterError):
        worker.residency.add_adapter(worker.request("a"))
    worker.assert_unchanged(before)
    assert worker.staged() == frozenset()


def break_missing(library: Any) -> None:
    shutil.rmtree(library.paths["a"])


def break_header(library: Any) -> None:
    (library.paths["a"] / "shadow_adapter.safetensors").write_bytes(b"garbage")


def break_config(library: Any) -> None:
    (library.paths["a"] / "shadow_config.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (break_missing, "adapter_not_found"),
        (break_header, "adapter_file_invalid"),
        (break_config, "adapter_config_invalid"),
    ],
)
def test_staged_errors_are_reported_by_code_once(
    damage: Callable[[Any], None], code: str, moved: Any, worker: Any
) -> None:
    worker.library = moved
    damage(moved)
    answer = worker.load("a")
    assert isinstance(answer, tuple)
    assert answer[0] == code
    assert answer[1]
    assert worker.staged() == frozenset()


def test_an_unexpected_failure_has_a_code_of_its_own(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise MemoryError("no pinned memory")

    monkeypatch.setattr(image_loader, "ImageDraft", fail)
    assert worker.load("a") == ("internal_error", "MemoryError: no pinned memory")


def test_a_repaired_adapter_can_be_loaded(moved: Any, library: Any, worker: Any) -> None:
    worker.library = moved
    break_header(moved)
    assert isinstance(worker.load("a"), tuple)
    shutil.copytree(library.paths["a"], moved.paths["a"], dirs_exist_ok=True)
    assert worker.load("a") is True


def test_an_unload_meanwhile_leaves_nothing(worker: Any) -> None:
    source = AdapterSource.of(worker.library.manifests["a"])
    assert worker.residency.load(source) is None
    assert worker.residency.unload(source.digest) is False
    assert worker.staged() == frozenset()
    assert worker.residency.status()["held"] == []
    assert worker.load("a") is True
    assert worker.residency.unload(source.digest) is True
    assert worker.residency.status()["held"] == []


# Capacity ----------------------------------------------------------------------------------------


def test_a_full_host_tier_refuses_and_keeps_what_it_has(worker: Any) -> None:
    worker.add("a", "b", "c", "d")
    before = worker.snapshot()
    with pytest.raises(errors.CapacityError, match="all 4 places"):
        worker.residency.add_adapter(worker.request("own"))
    worker.assert_unchanged(before)
    assert worker.residency.add_adapter(worker.request("again", "a")) is False
    worker.residency.remove_adapter(worker.id_of("b"))
    worker.add("own")


def test_a_full_host_tier_refuses_before_it_reads(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.add("a", "b", "c", "d")
    monkeypatch.setattr(image_loader, "load_adapter", None)
    answer = worker.load("own")
    assert isinstance(answer, tuple)
    assert answer[0] == "adapter_capacity"
    assert worker.staged() == frozenset()


def test_a_refused_adapter_leaves_no_staged_image(worker: Any) -> None:
    worker.add("a", "b", "c")
    worker.stage("own")
    worker.add("d")
    with pytest.raises(errors.CapacityError):
        worker.residency.add_adapter(worker.request("own"))
    assert worker.staged() == frozenset()


def test_abandoned_loads_do_not_pile_up(make_worker: Callable[..., Any]) -> None:
    worker = make_worker(max_host_adapters=2)
    for name in ("a", "b", "c", "d", "own"):
        worker.stage(name)
        assert len(worker.staged()) <= 2
    # What was dropped is read again when it is wanted after all.
    worker.add("a", "own")


def test_unloading_frees_slot_and_host_memory(worker: Any) -> None:
    worker.add("a", "b")
    worker.step(["a", "b"])
    slot, held = worker.resident()["a"], worker.residency.status()["host_bytes"]
    assert worker.residency.remove_adapter(worker.id_of("a"))
    worker.residency.check_integrity()
    status = worker.residency.status()
    assert worker.resident().keys() == {"b"}
    assert status["held"] == [worker.digest_of("b")]
    assert status["num_free_slots"] == 3
    assert status["host_bytes"] == held // 2 > 0
    assert worker.residency.remove_adapter(worker.id_of("a")) is False
    worker.add("c")
    assert worker.step(["c", "b"])[0] == slot
    worker.assert_holds(slot, "c")


def test_a_failing_copy_names_no_owner(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.add("a", "b", "c")
    worker.step(["a", "b"])
    num_steps = worker.executor.num_steps

    def fail(slot: int, image: Any) -> None:
        raise RuntimeError("device lost")

    with monkeypatch.context() as broken:
        broken.setattr(worker.executor.stacks, "write", fail)
        with pytest.raises(RuntimeError, match="device lost"):
            worker.step(["c"])
    worker.residency.check_integrity()
    assert "c" not in worker.resident()
    assert worker.executor.num_steps == num_steps
    worker.step(["c"])
    worker.assert_holds(worker.resident()["c"], "c")


@pytest.mark.parametrize(
    "damage",
    [
        lambda r: r._images.popitem(),
        lambda r: r._digests.popitem(),
        lambda r: r._digests.update({5: r._digests.popitem()[1]}),
        lambda r: r._slots._pools[1].ensure("sha256:stranger", (), lambda slot: None),
        lambda r: r._slots._pools[1].reserve("sha256:stranger", ()),
        lambda r: r._images.update({str(i): next(iter(r._images.values())) for i in range(9)}),
    ],
    ids=[
        "image lost",
        "id lost",
        "wrong id",
        "slot without image",
        "slot filled by nobody",
        "too many images",
    ],
)
def test_check_integrity_sees_damage(damage: Callable[[Any], None], worker: Any) -> None:
    worker.step(["a"])
    damage(worker.residency)
    with pytest.raises(RuntimeError):
        worker.residency.check_integrity()


def test_status_is_json(worker: Any) -> None:
    worker.step(["a"])
    status = worker.residency.status()
    assert json.loads(json.dumps(status)) == status
    assert status["active"] is True
    assert status["num_slots"] == 4


# The canonical file --------------------------------------------------------------------------------


def write_canonical_of(library: Any, target: str, source: str) -> Path:
    """Write the canonical file of one adapter beside the checkpoint of another."""
    path = library.paths[target] / CANONICAL_FILE
    with path.open("wb") as file:
        adapter = load_adapter(library.paths[source], library.base)
        assert write_canonical(adapter, file.fileno(), 1 << 30)
    return path


def test_a_canonical_file_is_read_in_place_of_the_checkpoint(
    moved: Any, worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.library = moved
    write_canonical_of(moved, "a", "a")
    # Reads the checkpoint for the comparison, before it cannot be read any more.
    moved.canonical("a")
    break_header(moved)
    monkeypatch.setattr(image_loader, "load_adapter", None)
    assert worker.load("a") is True
    worker.step(["a"])
    worker.assert_holds(worker.resident()["a"], "a")


def damage_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        damage_byte,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(
            path.read_bytes().replace(b'"version": "1"', b'"version": "9"')
        ),
        lambda path: (path.unlink(), path.symlink_to("shadow_adapter.safetensors")),
    ],
    ids=["byte", "empty", "short", "version", "link"],
)
def test_the_checkpoint_is_read_where_the_canonical_file_is_not_sound(
    damage: Callable[[Path], Any], moved: Any, worker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    worker.library = moved
    damage(write_canonical_of(moved, "a", "a"))
    assert worker.load("a") is True
    worker.step(["a"])
    worker.assert_holds(worker.resident()["a"], "a")
    assert "reading the checkpoint of " + worker.digest_of("a") in caplog.text


def test_a_canonical_file_of_another_adapter_is_not_taken(moved: Any, worker: Any) -> None:
    worker.library = moved
    write_canonical_of(moved, "a", "b")
    assert worker.load("a") is True
    worker.step(["a"])
    worker.assert_holds(worker.resident()["a"], "a")
