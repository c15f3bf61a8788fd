"""The slot pool against a model that keeps the whole history in one list."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shadow_runtime.errors import CapacityError
from shadow_runtime.slots.pool import SlotPool

DIGESTS = st.sampled_from("abcdefg")


class FillError(Exception):
    """What a copy into a slot may raise."""


class PoolMachine(RuleBasedStateMachine):
    """Drives a pool and a list of [digest, slot] pairs, least recently used first, side by side."""

    @initialize(first_slot=st.integers(0, 5), num_slots=st.integers(1, 4), data=st.data())
    def start(self, first_slot: int, num_slots: int, data: st.DataObject) -> None:
        self.max_pinned = data.draw(st.integers(0, num_slots - 1))
        self.pool = SlotPool(first_slot, num_slots, self.max_pinned)
        self.slots = set(range(first_slot, first_slot + num_slots))
        self.order: list[list] = []
        self.filling: dict[str, int] = {}
        self.pinned: set[str] = set()
        self.filled: list[int] = []

    def _index(self, digest: str) -> int | None:
        return next((i for i, (known, _) in enumerate(self.order) if known == digest), None)

    def _fill(self, digest: str, fails: bool):
        def fill(slot: int) -> None:
            # Not named as the owner before its bytes are there.
            assert self.pool.find(digest) is None
            assert slot not in self.pool.resident.values()
            self.filled.append(slot)
            if fails:
                raise FillError

        return fill

    @rule(digest=DIGESTS, keep=st.frozensets(DIGESTS, max_size=4), fails=st.booleans())
    def ensure(self, digest: str, keep: frozenset[str], fails: bool) -> None:
        self.filled.clear()
        if digest in self.filling:
            return
        index = self._index(digest)
        if index is not None:
            assert self.pool.ensure(digest, keep, self._fill(digest, fails)) == self.order[index][1]
            assert self.filled == []
            self.order.append(self.order.pop(index))
            return
        allowed = self._allowed(keep)
        if not allowed:
            with pytest.raises(CapacityError, match=f"all {len(self.slots)} slots"):
                self.pool.ensure(digest, keep, self._fill(digest, fails))
            assert self.filled == []
            return
        if fails:
            with pytest.raises(FillError):
                self.pool.ensure(digest, keep, self._fill(digest, fails))
        else:
            slot = self.pool.ensure(digest, keep, self._fill(digest, fails))
            assert self.filled == [slot]
            self.order.append([digest, slot])
        assert len(self.filled) == 1
        assert set(self.filled) <= allowed

    def _allowed(self, keep: frozenset[str]) -> set[int]:
        """Return the slots of which one is taken next; the victim has left the model."""
        taken = {slot for _, slot in self.order} | set(self.filling.values())
        victims = [i for i, (d, _) in enumerate(self.order) if d not in keep | self.pinned]
        if self.slots - taken:
            return self.slots - taken
        return {self.order.pop(victims[0])[1]} if victims else set()

    @rule(digest=DIGESTS, keep=st.frozensets(DIGESTS, max_size=4))
    def reserve(self, digest: str, keep: frozenset[str]) -> None:
        if digest in self.filling or self._index(digest) is not None:
            with pytest.raises(ValueError, match="has a slot"):
                self.pool.reserve(digest, keep)
            return
        allowed = self._allowed(keep)
        slot = self.pool.reserve(digest, keep)
        assert slot in allowed if allowed else slot is None
        if slot is not None:
            self.filling[digest] = slot

    @rule(digest=DIGESTS)
    def commit(self, digest: str) -> None:
        if digest in self.filling:
            slot = self.filling.pop(digest)
            assert self.pool.commit(digest) == slot
            self.order.append([digest, slot])

    @rule(digest=DIGESTS)
    def abandon(self, digest: str) -> None:
        if digest in self.filling:
            self.pool.abandon(digest)
            del self.filling[digest]
            self.pinned.discard(digest)

    @rule(digest=DIGESTS)
    def release(self, digest: str) -> None:
        index = self._index(digest)
        expected = None if index is None else self.order.pop(index)[1]
        assert self.pool.release(digest) == expected
        if expected is not None:
            self.pinned.discard(digest)

    @rule(digest=DIGESTS)
    def unpin(self, digest: str) -> None:
        self.pool.unpin(digest)
        self.pinned.discard(digest)

    @rule(digest=DIGESTS)
    def pin(self, digest: str) -> None:
        if self._index(digest) is None and digest not in self.filling:
            with pytest.raises(KeyError):
                self.pool.pin(digest)
        elif len(self.pinned - {digest}) == self.max_pinned:
            with pytest.raises(CapacityError, match=f"all {self.max_pinned} pins"):
                self.pool.pin(digest)
        else:
            self.pool.pin(digest)
            self.pinned.add(digest)

    @invariant()
    def agrees_with_the_model(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_integrity()
        assert list(self.pool.resident.items()) == [tuple(pair) for pair in self.order]
        assert self.pool.filling == self.filling
        assert self.pool.pinned == self.pinned
        assert self.pool.num_free == len(self.slots) - len(self.order) - len(self.filling)
        for digest in "abcdefg":
            assert self.pool.find(digest) == dict(self.order).get(digest)


PoolMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, database=None
)
test_pool_behaves_like_its_model = PoolMachine.TestCase


def do_nothing(slot: int) -> None:
    """Fill nothing."""


def full_pool(*digests: str, max_pinned: int = 0) -> SlotPool:
    """Return a pool with exactly these adapters, the first one least recently used."""
    pool = SlotPool(0, len(digests), max_pinned)
    for digest in digests:
        pool.ensure(digest, (), do_nothing)
    return pool


def test_the_least_recently_used_adapter_leaves() -> None:
    pool = full_pool("a", "b", "c")
    pool.ensure("a", (), do_nothing)
    freed = pool.find("b")
    assert pool.ensure("d", (), do_nothing) == freed
    assert list(pool.resident) == ["c", "a", "d"]


def test_what_the_step_needs_stays() -> None:
    pool = full_pool("a", "b", "c")
    pool.ensure("d", {"a", "b", "d"}, do_nothing)
    assert list(pool.resident) == ["a", "b", "d"]
    with pytest.raises(CapacityError):
        pool.ensure("e", {"a", "b", "d", "e"}, do_nothing)
    assert list(pool.resident) == ["a", "b", "d"]


def test_a_released_pin_is_forgotten() -> None:
    pool = full_pool("a", "b", max_pinned=1)
    pool.pin("a")
    with pytest.raises(CapacityError):
        pool.ensure("c", {"b"}, do_nothing)
    pool.release("a")
    pool.ensure("a", (), do_nothing)
    pool.ensure("c", {"b"}, do_nothing)
    assert list(pool.resident) == ["b", "c"]


def test_a_slot_that_is_being_filled_belongs_to_nobody() -> None:
    pool = full_pool("a", "b")
    slot = pool.reserve("c", {"b"})
    assert pool.find("c") is None
    assert list(pool.resident) == ["b"]
    # Nor can it be taken by another one.
    assert pool.reserve("d", {"b"}) is None
    with pytest.raises(CapacityError):
        pool.ensure("d", {"b"}, do_nothing)
    assert pool.commit("c") == pool.find("c") == slot


@pytest.mark.parametrize("max_pinned", [-1, 2, 3])
def test_some_slot_is_always_left_for_steps(max_pinned: int) -> None:
    with pytest.raises(ValueError, match="cannot be pinned"):
        SlotPool(0, 2, max_pinned)


def test_resident_is_a_copy() -> None:
    pool = full_pool("a", "b")
    pool.resident.clear()
    assert len(pool.resident) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda pool: pool._free.append(0),
        lambda pool: pool._owner.update(b=pool._owner["a"]),
        lambda pool: pool._owner.pop("a"),
        lambda pool: pool._pinned.add("stranger"),
        lambda pool: pool._pinned.add("b"),
        lambda pool: pool._filling.update(c=pool._owner["a"]),
        lambda pool: pool._filling.update(a=pool._free.pop()),
    ],
    ids=[
        "slot free and owned",
        "slot owned twice",
        "slot lost",
        "pin without slot",
        "too many pins",
        "slot owned and filled",
        "resident and filled",
    ],
)
def test_check_integrity_sees_damage(damage) -> None:
    pool = full_pool("a", "b", "f", max_pinned=1)
    pool.pin("a")
    pool.release("f")
    pool.check_integrity()
    damage(pool)
    with pytest.raises(RuntimeError):
        pool.check_integrity()
