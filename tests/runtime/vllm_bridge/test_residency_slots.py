"""Slots filled beside the steps, pinned and released, over real images and stacks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from shadow_runtime.errors import AdapterNotFoundError, CapacityError


class SlowStacks:
    """Holds every copy into a slot until `may_copy`, and notes the threads."""

    def __init__(self, worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_copy = threading.Event()
        self.has_begun = threading.Event()
        self.threads: list[str] = []
        self._write = worker.executor.stacks.write
        monkeypatch.setattr(worker.executor.stacks, "write", self.write)

    def write(self, slot: int, image: Any) -> None:
        self.threads.append(threading.current_thread().name)
        self.has_begun.set()
        assert self.may_copy.wait(30)
        self._write(slot, image)


@pytest.fixture
def spare(make_worker: Callable[..., Any]) -> Any:
    """Return a worker of two slots a class for steps and one more."""
    return make_worker(max_pinned_adapters=1)


def test_a_prefetched_adapter_is_whole_and_needs_no_copy_in_a_step(
    spare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare.add("a", "own")
    for name in ("a", "own"):
        assert spare.residency.prefetch(spare.digest_of(name)) is None
    spare.settle()
    assert spare.residency.prefetch(spare.digest_of("a")) is True
    monkeypatch.setattr(spare.executor.stacks, "write", None)
    for slot, name in zip(spare.step(["a", "own"]), ("a", "own"), strict=True):
        spare.assert_holds(slot, name)


def test_steps_go_on_while_a_slot_is_filled(spare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spare.add("a", "b")
    spare.step(["a"])
    slow = SlowStacks(spare, monkeypatch)
    digest = spare.digest_of("b")
    assert spare.residency.prefetch(digest) is None
    assert slow.has_begun.wait(30)
    for _ in range(3):
        assert spare.step(["a", None]) == [spare.resident()["a"], -1]
    assert "b" not in spare.resident()
    assert spare.residency.prefetch(digest) is None
    slow.may_copy.set()
    spare.settle()
    spare.assert_holds(spare.resident()["b"], "b")
    assert len(slow.threads) == 1
    assert slow.threads[0].startswith("shadow-loader")


def test_a_step_that_needs_the_adapter_waits_for_its_copy(
    spare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare.add("b")
    slow = SlowStacks(spare, monkeypatch)
    spare.residency.prefetch(spare.digest_of("b"))
    assert slow.has_begun.wait(30)
    threading.Timer(0.05, slow.may_copy.set).start()
    started = time.monotonic()
    (slot,) = spare.step(["b"])
    assert time.monotonic() - started > 0.02
    spare.assert_holds(slot, "b")
    assert len(slow.threads) == 1


def test_a_step_does_not_wait_behind_somebodys_reading(
    spare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare.add("b")
    never = threading.Event()
    for _ in range(2):  # both loader threads are busy
        spare.residency._loader.threads.submit(never.wait, 30)
    spare.residency.prefetch(spare.digest_of("b"))
    (slot,) = spare.step(["b"])
    spare.assert_holds(slot, "b")
    never.set()


def test_releasing_a_slot_keeps_the_image(spare: Any) -> None:
    spare.add("a", "b")
    spare.step(["a", "b"])
    free = spare.residency.status()["num_free_slots"]
    spare.residency.release_slot(spare.digest_of("a"))
    spare.residency.release_slot("sha256:unknown")
    status = spare.residency.status()
    assert status["num_free_slots"] == free + 1
    assert spare.digest_of("a") in status["held"]
    (slot,) = spare.step(["a"])
    spare.assert_holds(slot, "a")


def test_an_unload_during_a_copy_frees_the_slot_after_it(
    spare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare.add("a")
    free = spare.residency.status()["num_free_slots"]
    slow = SlowStacks(spare, monkeypatch)
    spare.residency.prefetch(spare.digest_of("a"))
    assert slow.has_begun.wait(30)
    assert spare.residency.unload(spare.digest_of("a"))
    spare.residency.check_integrity()
    assert spare.residency.status()["num_free_slots"] == free - 1
    slow.may_copy.set()
    spare.settle()
    assert spare.residency.status()["num_free_slots"] == free
    assert spare.resident() == {}


def test_only_idle_adapters_leave_for_a_prefetch(worker: Any) -> None:
    worker.add("a", "b", "c")
    worker.step(["a", "b"])
    assert worker.residency.prefetch(worker.digest_of("c")) is False
    worker.step(["b"])
    assert worker.residency.prefetch(worker.digest_of("c")) is None
    worker.settle()
    assert worker.resident().keys() == {"b", "c"}


def test_a_pinned_adapter_is_never_in_the_way_of_a_step(spare: Any) -> None:
    spare.add("a", "b", "c")
    while spare.residency.pin(spare.digest_of("a")) is None:
        spare.settle()
    slot = spare.resident()["a"]
    for mix in (["b", "c"], ["a", "b"], ["c", "a"], ["c", "b"]):
        for given, name in zip(spare.step(mix), mix, strict=True):
            spare.assert_holds(given, name)
        assert spare.resident()["a"] == slot
    assert spare.residency.status()["pinned"] == [spare.digest_of("a")]
    assert spare.residency.pin(spare.digest_of("b"))[0] == CapacityError.code
    spare.residency.unpin(spare.digest_of("a"))
    assert spare.residency.status()["pinned"] == []


def test_what_is_not_held_is_neither_prefetched_nor_pinned(spare: Any) -> None:
    assert spare.residency.prefetch(spare.digest_of("a")) is False
    assert spare.residency.pin(spare.digest_of("a"))[0] == AdapterNotFoundError.code
    spare.residency.unpin(spare.digest_of("a"))


def test_warm_up_leaves_pins_and_copies_alone(spare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # vLLM removes all adapters after every dummy run, also between requests.
    spare.add("a", "b")
    slow = SlowStacks(spare, monkeypatch)
    spare.residency.pin(spare.digest_of("a"))
    spare.residency.remove_all_adapters()
    slow.may_copy.set()
    spare.settle()
    assert spare.residency.status()["pinned"] == [spare.digest_of("a")]
    spare.assert_holds(spare.resident()["a"], "a")
