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

    @initialize(first_slot=st.integers(0, 5), num_slots=st.integers(1, 4))
    def start(self, first_slot: int, num_slots: int) -> None:
        self.pool = SlotPool(first_slot, num_slots)
        self.slots = set(range(first_slot, first_slot + num_slots))
        self.order: list[list] = []
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
        index = self._index(digest)
        if index is not None:
            assert self.pool.ensure(digest, keep, self._fill(digest, fails)) == self.order[index][1]
            assert self.filled == []
            self.order.append(self.order.pop(index))
            return
        free = self.slots - {slot for _, slot in self.order}
        victims = [i for i, (d, _) in enumerate(self.order) if d not in keep | self.pinned]
        if not free and not victims:
            with pytest.raises(CapacityError, match=f"all {len(self.slots)} slots"):
                self.pool.ensure(digest, keep, self._fill(digest, fails))
            assert self.filled == []
            return
        allowed = free or {self.order.pop(victims[0])[1]}
        if fails:
            with pytest.raises(FillError):
                self.pool.ensure(digest, keep, self._fill(digest, fails))
        else:
            slot = self.pool.ensure(digest, keep, self._fill(digest, fails))
            assert self.filled == [slot]
            self.order.append([digest, slot])
        assert len(self.filled) == 1
        assert set(self.filled) <= allowed

    @rule(digest=DIGESTS)
    def release(self, digest: str) -> None:
        index = self._index(digest)
        expected = None if index is None else self.order.pop(index)[1]
        assert self.pool.release(digest) == expected
        self.pinned.discard(digest)

    @rule(digest=DIGESTS)
    def pin(self, digest: str) -> None:
        if self._index(digest) is None:
            with pytest.raises(KeyError):
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
        assert self.pool.num_free == len(self.slots) - len(self.order)
        for digest in "abcdefg":
            assert self.pool.find(digest) == dict(self.order).get(digest)


PoolMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, database=None
)
test_pool_behaves_like_its_model = PoolMachine.TestCase


def do_nothing(slot: int) -> None:
    """Fill nothing."""


def full_pool(*digests: str) -> SlotPool:
    """Return a pool with exactly these adapters, the first one least recently used."""
    pool = SlotPool(0, len(digests))
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
    pool = full_pool("a")
    pool.pin("a")
    with pytest.raises(CapacityError):
        pool.ensure("b", (), do_nothing)
    pool.release("a")
    pool.ensure("a", (), do_nothing)
    pool.ensure("b", (), do_nothing)
    assert list(pool.resident) == ["b"]


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
    ],
    ids=["slot free and owned", "slot owned twice", "slot lost", "pin without slot"],
)
def test_check_integrity_sees_damage(damage) -> None:
    pool = full_pool("a")
    pool.check_integrity()
    damage(pool)
    with pytest.raises(RuntimeError):
        pool.check_integrity()
