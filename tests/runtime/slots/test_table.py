"""Slots are filled beside the steps, and no step ever sees a slot with anything but its adapter's whole image."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shadow_runtime.errors import CapacityError, ShadowError
from shadow_runtime.slots.table import SlotTable


class CopyError(Exception):
    """What a copy into a slot may raise."""


@dataclass
class Copy:
    """A copy that writes its slot only when it is done, as late as the test likes."""

    memory: Memory
    slot: int
    digest: str
    fails: bool
    has_ended: bool = False

    def is_done(self) -> bool:
        return self.has_ended

    def end(self) -> None:
        if not self.has_ended:
            self.has_ended = True
            self.memory.slots[self.slot] = "garbage" if self.fails else self.digest

    def join(self) -> None:
        self.end()
        if self.fails:
            raise CopyError


@dataclass
class Memory:
    """The content of every slot, and the copies that will still write into one: a `SlotWriter`."""

    slots: dict[int, str] = field(default_factory=dict)
    copies: list[Copy] = field(default_factory=list)
    fails: bool = False

    def begin_step(self) -> None:
        pass

    def begin(self, slot: int, image: Any) -> Copy:
        copy = Copy(self, slot, image.digest, self.fails)
        self.copies.append(copy)
        return copy

    def write(self, slot: int, image: Any) -> None:
        self.slots[slot] = image.digest

    def under_way(self) -> list[Copy]:
        return [copy for copy in self.copies if not copy.has_ended]


def image_of(digest: str) -> Any:
    """Return an image of class 1 for capital letters, else of class 0."""
    return SimpleNamespace(digest=digest, class_index=int(digest.isupper()))


def make_table(max_resident: int = 2, max_pinned: int = 1, *more: int) -> tuple[SlotTable, Memory]:
    """Return a table of two classes that can always hold `max_resident` adapters beside `max_pinned` pins."""
    counts = (max_resident + max_pinned, max_resident + max_pinned + sum(more))
    config: Any = SimpleNamespace(
        slot_classes=[SimpleNamespace(num_slots=count) for count in counts],
        first_slot=lambda index: sum(counts[:index]),
        max_pinned_adapters=max_pinned,
    )
    memory = Memory()
    return SlotTable(config, memory), memory


DIGESTS = st.sampled_from("abcdeABCD")


class TableMachine(RuleBasedStateMachine):
    """Steps, prefetches, pins and releases in any order, with copies that end whenever they like, or fail."""

    @initialize(max_resident=st.integers(1, 3), max_pinned=st.integers(0, 2))
    def start(self, max_resident: int, max_pinned: int) -> None:
        self.max_resident = max_resident
        self.max_pinned = max_pinned
        self.table, self.memory = make_table(max_resident, max_pinned, 1)

    def safe_pins(self) -> set[str]:
        """Return the pinned adapters that are in a slot, or will be."""
        failing = {copy.digest for copy in self.memory.copies if copy.fails}
        return set(self.table.pinned) - (failing - self.table.resident.keys())

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        pinned = self.safe_pins()
        mix = data.draw(st.sets(DIGESTS, max_size=self.max_resident), label="mix")
        self.table.begin_step(mix)
        slots = {digest: self.table.ensure(digest, image_of(digest)) for digest in sorted(mix)}
        assert {slot: self.memory.slots[slot] for slot in slots.values()} == {
            slot: digest for digest, slot in slots.items()
        }
        assert pinned <= self.table.pinned
        # Nothing that is still being copied may hit a slot that the step reads.
        assert not {copy.slot for copy in self.memory.under_way()} & set(slots.values())

    @rule(digest=DIGESTS, fails=st.booleans())
    def prefetch(self, digest: str, fails: bool) -> None:
        self.memory.fails = fails
        before, pinned = self.table.resident, self.safe_pins()
        outcome = self.table.prefetch(digest, image_of(digest))
        self.memory.fails = False
        assert (outcome is True) == (digest in self.table.resident)
        lost = before.keys() - self.table.resident.keys()
        assert not lost & (self.table._in_step | pinned)

    @rule(data=st.data())
    def end_a_copy(self, data: st.DataObject) -> None:
        copies = self.memory.under_way()
        if copies:
            copies[data.draw(st.integers(0, len(copies) - 1))].end()

    @rule(digest=DIGESTS, fails=st.booleans())
    def pin(self, digest: str, fails: bool) -> None:
        in_class = {d for d in self.table.pinned if d.isupper() == digest.isupper()}
        self.memory.fails = fails
        try:
            self.table.pin(digest, image_of(digest))
        except CapacityError:
            assert len(in_class - {digest}) == self.max_pinned
        except ShadowError:
            assert digest not in self.table.pinned
        else:
            assert len(in_class - {digest}) < self.max_pinned
        self.memory.fails = False

    @rule(digest=DIGESTS)
    def unpin(self, digest: str) -> None:
        self.table.unpin(digest)
        assert digest not in self.table.pinned

    @rule(digest=DIGESTS)
    def release(self, digest: str) -> None:
        self.table.release(digest)
        assert digest not in self.table.resident
        assert digest not in self.table.pinned

    @invariant()
    def holds_together(self) -> None:
        if not hasattr(self, "table"):
            return
        self.table.check_integrity()
        resident = self.table.resident
        assert {slot: self.memory.slots[slot] for slot in resident.values()} == {
            slot: digest for digest, slot in resident.items()
        }


TableMachine.TestCase.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, database=None
)
test_table_never_shows_a_step_a_wrong_slot = TableMachine.TestCase


def settled(table: SlotTable, memory: Memory, *digests: str) -> None:
    """Prefetch adapters and let their copies end."""
    for digest in digests:
        table.prefetch(digest, image_of(digest))
    for copy in memory.under_way():
        copy.end()
    table.settle()


def test_a_prefetched_adapter_is_resident_only_after_its_copy() -> None:
    table, memory = make_table()
    assert table.prefetch("a", image_of("a")) is None
    assert table.resident == {}
    assert table.prefetch("a", image_of("a")) is None
    assert len(memory.copies) == 1
    memory.copies[0].end()
    assert table.prefetch("a", image_of("a")) is True
    table.begin_step(["a"])
    assert memory.slots[table.ensure("a", image_of("a"))] == "a"
    assert len(memory.copies) == 1


def test_a_step_joins_the_copy_that_it_needs_instead_of_making_another() -> None:
    table, memory = make_table()
    table.prefetch("a", image_of("a"))
    table.prefetch("b", image_of("b"))
    table.begin_step(["a"])
    slot = table.ensure("a", image_of("a"))
    assert memory.slots == {slot: "a"}
    assert [copy.digest for copy in memory.under_way()] == ["b"]


def test_a_prefetch_takes_a_free_slot_before_somebodys() -> None:
    table, memory = make_table(max_resident=2, max_pinned=1)
    settled(table, memory, "a", "b", "c")
    assert table.resident.keys() == {"a", "b", "c"}
    table.begin_step(["a", "b"])
    for digest in "ab":
        table.ensure(digest, image_of(digest))
    settled(table, memory, "d")
    assert table.resident.keys() == {"a", "b", "d"}
    table.pin("d", image_of("d"))
    assert table.prefetch("e", image_of("e")) is False


def test_a_released_adapter_keeps_its_slot_from_others_until_its_copy_has_ended() -> None:
    table, memory = make_table(max_resident=1, max_pinned=0)
    table.prefetch("a", image_of("a"))
    table.release("a")
    assert table.num_free == 1  # class 1's
    assert table.prefetch("b", image_of("b")) is False
    memory.copies[0].end()
    assert table.prefetch("b", image_of("b")) is None
    memory.copies[1].end()
    table.settle()
    assert table.resident.keys() == {"b"}


def test_an_adapter_that_comes_back_uses_the_copy_under_way() -> None:
    table, memory = make_table()
    table.prefetch("a", image_of("a"))
    table.release("a")
    table.prefetch("a", image_of("a"))
    assert len(memory.copies) == 1
    settled(table, memory)
    assert table.resident.keys() == {"a"}


def test_a_failed_copy_is_reported_once_and_leaves_a_free_slot(
    caplog: pytest.LogCaptureFixture,
) -> None:
    table, memory = make_table()
    num_free = table.num_free
    memory.fails = True
    assert table.prefetch("a", image_of("a")) is None
    memory.copies[0].end()
    assert table.prefetch("a", image_of("a")) is False
    assert table.num_free == num_free
    assert "could not be copied" in caplog.text
    memory.fails = False
    settled(table, memory, "a")
    assert table.resident.keys() == {"a"}


def test_pins_end_with_the_release() -> None:
    table, memory = make_table(max_resident=1, max_pinned=1)
    table.pin("a", image_of("a"))
    assert table.pinned == {"a"}
    with pytest.raises(CapacityError, match="all 1 pins"):
        table.pin("b", image_of("b"))
    table.pin("A", image_of("A"))  # another class has pins of its own
    table.release("a")
    assert table.pinned == {"A"}
    table.pin("b", image_of("b"))
    assert table.pinned == {"A", "b"}
    del memory


def test_a_step_beyond_what_is_admitted_is_refused() -> None:
    table, _ = make_table(max_resident=2, max_pinned=0)
    table.begin_step("abc")
    table.ensure("a", image_of("a"))
    table.ensure("b", image_of("b"))
    with pytest.raises(CapacityError, match="all 2 slots"):
        table.ensure("c", image_of("c"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda table: table._fills.clear(),
        lambda table: table._pools[0].commit("a"),
        lambda table: table._pools[1].reserve("B", ()),
    ],
    ids=["copy forgotten", "committed behind its back", "filled by nobody"],
)
def test_check_integrity_sees_damage(damage: Any) -> None:
    table, _ = make_table()
    table.prefetch("a", image_of("a"))
    table.check_integrity()
    damage(table)
    with pytest.raises(RuntimeError):
        table.check_integrity()
