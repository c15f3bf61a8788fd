"""Who occupies which slot.

Runs in: GPU worker, step thread only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection

from shadow_runtime.errors import CapacityError


class SlotPool:
    """Slots of one class, given to the most recently used adapters.

    Invariants (checked by `check_integrity`): (1) an adapter has at most one slot and a slot at most one adapter;
    (2) free and occupied slots together are exactly the class's slots; (3) a pinned adapter occupies a slot.

    Thread/process ownership: the worker's step thread. Failure behaviour: `fill` runs before the occupant is recorded;
    when it raises, the slot goes back to the free list and no adapter is named as its owner.
    """

    def __init__(self, first_slot: int, num_slots: int) -> None:
        self._slots = range(first_slot, first_slot + num_slots)
        self._free = list(reversed(self._slots))
        self._owner: OrderedDict[str, int] = OrderedDict()
        self._pinned: set[str] = set()

    @property
    def resident(self) -> dict[str, int]:
        """Digest to slot of every resident adapter, least recently used first."""
        return dict(self._owner)

    @property
    def num_free(self) -> int:
        """Slots without an adapter."""
        return len(self._free)

    def find(self, digest: str) -> int | None:
        """Return the slot of an adapter, or None when it is not resident."""
        return self._owner.get(digest)

    def ensure(self, digest: str, keep: Collection[str], fill: Callable[[int], None]) -> int:
        """Make an adapter resident and the most recently used one.

        Args:
            digest: the adapter.
            keep: digests that the current step needs; they are not evicted.
            fill: writes the adapter into the slot that it is given.

        Raises:
            CapacityError: every slot is pinned or needed by the current step.
        """
        slot = self._owner.get(digest)
        if slot is None:
            slot = self._take(keep)
            try:
                fill(slot)
            except BaseException:
                self._free.append(slot)
                raise
            self._owner[digest] = slot
        self._owner.move_to_end(digest)
        return slot

    def release(self, digest: str) -> int | None:
        """Free an adapter's slot; returns the slot, or None when it was not resident."""
        self._pinned.discard(digest)
        slot = self._owner.pop(digest, None)
        if slot is not None:
            self._free.append(slot)
        return slot

    def pin(self, digest: str) -> None:
        """Keep a resident adapter from being evicted."""
        if digest not in self._owner:
            raise KeyError(digest)
        self._pinned.add(digest)

    def check_integrity(self) -> None:
        """Raise RuntimeError when an invariant of the class does not hold."""
        taken = list(self._owner.values())
        if sorted(taken + self._free) != list(self._slots):
            raise RuntimeError(f"slots {taken} and free {self._free} do not make up {self._slots}")
        if not self._pinned <= self._owner.keys():
            raise RuntimeError("a pinned adapter is not resident")

    def _take(self, keep: Collection[str]) -> int:
        if self._free:
            return self._free.pop()
        for digest in self._owner:
            if digest not in keep and digest not in self._pinned:
                return self._owner.pop(digest)
        raise CapacityError(f"all {len(self._slots)} slots are pinned or in use by this step")
