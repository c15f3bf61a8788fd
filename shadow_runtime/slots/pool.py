"""Who occupies which slot.

Runs in: GPU worker, step thread only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection

from shadow_runtime.errors import CapacityError


class SlotPool:
    """Slots of one class, given to the most recently used adapters.

        free ──reserve──> filling ──commit──> resident ──release, or taken by another's reserve──> free
                             └──abandon──> free

    A slot belongs to its adapter only from `commit` on: no step is ever told of one that is being filled. Whoever fills
    it writes all of it, so nothing of a predecessor and nothing of a failed fill is left in a slot that was committed,
    and an abandoned one needs no cleaning. It must not be abandoned, though, while a copy into it is still under way.

    All slots of a class cost the same to fill, so the least recently used one leaves; loads that differ in cost are
    weighed in the host tier.

    Invariants (checked by `check_integrity`): (1) an adapter has at most one slot and a slot at most one adapter;
    (2) free, filling and resident slots together are exactly the class's slots; (3) a pinned adapter is filling or
    resident; (4) at most `max_pinned` adapters are pinned, so any `num_slots - max_pinned` others find a slot.

    Thread/process ownership: the worker's step thread. Failure behaviour: what raises changes nothing.
    """

    def __init__(self, first_slot: int, num_slots: int, max_pinned: int = 0) -> None:
        if not 0 <= max_pinned < num_slots:
            raise ValueError(f"{max_pinned} of {num_slots} slots cannot be pinned")
        self._slots = range(first_slot, first_slot + num_slots)
        self._max_pinned = max_pinned
        self._free = list(reversed(self._slots))
        self._filling: dict[str, int] = {}
        self._owner: OrderedDict[str, int] = OrderedDict()
        self._pinned: set[str] = set()

    @property
    def resident(self) -> dict[str, int]:
        """Digest to slot of every resident adapter, least recently used first."""
        return dict(self._owner)

    @property
    def filling(self) -> dict[str, int]:
        """Digest to slot of every adapter whose slot is being filled."""
        return dict(self._filling)

    @property
    def pinned(self) -> frozenset[str]:
        """Digests that keep their slot."""
        return frozenset(self._pinned)

    @property
    def num_free(self) -> int:
        """Slots without an adapter."""
        return len(self._free)

    def find(self, digest: str) -> int | None:
        """Return the slot of an adapter, or None when it is not resident."""
        return self._owner.get(digest)

    def use(self, digest: str) -> int | None:
        """Return the slot of an adapter and make it the most recently used one; None when it is not resident."""
        slot = self._owner.get(digest)
        if slot is not None:
            self._owner.move_to_end(digest)
        return slot

    def reserve(self, digest: str, keep: Collection[str]) -> int | None:
        """Take a slot for an adapter that has none: a free one, else the least recently used one's.

        Args:
            digest: the adapter.
            keep: digests that are not evicted; pinned ones never are.

        Returns: the slot to fill, then to `commit` or `abandon`; None when there is none to take.
        """
        if digest in self._owner or digest in self._filling:
            raise ValueError(f"{digest} has a slot")
        slot = self._free.pop() if self._free else self._evict(keep)
        if slot is not None:
            self._filling[digest] = slot
        return slot

    def _evict(self, keep: Collection[str]) -> int | None:
        for digest in self._owner:
            if digest not in keep and digest not in self._pinned:
                return self._owner.pop(digest)
        return None

    def commit(self, digest: str) -> int:
        """Make an adapter whose slot is filled resident, as the most recently used one; returns the slot."""
        slot = self._owner[digest] = self._filling.pop(digest)
        return slot

    def abandon(self, digest: str) -> None:
        """Give a reserved slot back; a pin of the adapter ends."""
        self._free.append(self._filling.pop(digest))
        self._pinned.discard(digest)

    def ensure(self, digest: str, keep: Collection[str], fill: Callable[[int], None]) -> int:
        """Make an adapter resident and the most recently used one.

        Args:
            digest: the adapter; not one that is being filled.
            keep: digests that the current step needs; they are not evicted.
            fill: writes the adapter into the slot that it is given.

        Raises:
            CapacityError: every slot is pinned, being filled, or needed by the current step.
        """
        slot = self.use(digest)
        if slot is not None:
            return slot
        slot = self.reserve(digest, keep)
        if slot is None:
            raise CapacityError(f"all {len(self._slots)} slots are pinned or in use by this step")
        try:
            fill(slot)
        except BaseException:
            self.abandon(digest)
            raise
        return self.commit(digest)

    def release(self, digest: str) -> int | None:
        """Free an adapter's slot and end its pin; returns the slot, or None when it was not resident."""
        slot = self._owner.pop(digest, None)
        if slot is not None:
            self._pinned.discard(digest)
            self._free.append(slot)
        return slot

    def check_pin(self, digest: str) -> None:
        """Raise CapacityError when no further adapter can be pinned; a pinned one may be so again."""
        if digest not in self._pinned and len(self._pinned) >= self._max_pinned:
            raise CapacityError(
                f"all {self._max_pinned} pins of this slot class are taken; unpin another adapter first"
            )

    def pin(self, digest: str) -> None:
        """Keep an adapter that is resident or being filled from being evicted.

        Raises:
            CapacityError: `max_pinned` others are pinned.
            KeyError: it has no slot.
        """
        if digest not in self._owner and digest not in self._filling:
            raise KeyError(digest)
        self.check_pin(digest)
        self._pinned.add(digest)

    def unpin(self, digest: str) -> None:
        """Undo `pin`; does nothing for an adapter that is not pinned."""
        self._pinned.discard(digest)

    def check_integrity(self) -> None:
        """Raise RuntimeError when an invariant of the class does not hold."""
        taken = list(self._owner.values()) + list(self._filling.values())
        if sorted(taken + self._free) != list(self._slots):
            raise RuntimeError(f"slots {taken} and free {self._free} do not make up {self._slots}")
        if self._owner.keys() & self._filling.keys():
            raise RuntimeError("an adapter is resident and being filled")
        if not self._pinned <= self._owner.keys() | self._filling.keys():
            raise RuntimeError("a pinned adapter has no slot")
        if len(self._pinned) > self._max_pinned:
            raise RuntimeError("more pinned adapters than max_pinned")
