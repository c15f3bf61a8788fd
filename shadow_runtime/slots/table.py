"""The slots of all classes and the copies under way into them.

Runs in: GPU worker, step thread only.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from shadow_runtime.config import ShadowConfig
from shadow_runtime.errors import CapacityError, ShadowError
from shadow_runtime.slots.fill import SlotFill, SlotWriter
from shadow_runtime.slots.image import SlotImage
from shadow_runtime.slots.pool import SlotPool

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Fill:
    class_index: int
    copy: SlotFill
    is_wanted: bool = True


class SlotTable:
    """Gives adapters slots, at once for a step or beside the steps.

    A slot under a copy belongs to nobody until the copy has completed or a step that needs it has been put behind it.
    An adapter that is released meanwhile keeps the slot from others until then, or the rest of its copy would hit the
    next adapter. A copy that failed leaves a free slot and a line in the log; the step that needs the adapter then
    writes it itself and raises what is wrong.

    Invariants (checked by `check_integrity`): (1) each class's pool holds its own; (2) the slots that pools count as
    being filled are exactly those with a copy under way.

    Thread/process ownership: the worker's step thread.
    """

    def __init__(self, config: ShadowConfig, writer: SlotWriter) -> None:
        self._writer = writer
        self._pools = [
            SlotPool(config.first_slot(i), c.num_slots, config.max_pinned_adapters)
            for i, c in enumerate(config.slot_classes)
        ]
        self._fills: dict[str, _Fill] = {}
        self._failed: set[str] = set()
        self._in_step: frozenset[str] = frozenset()

    # The step ----------------------------------------------------------------------------------------------------

    def begin_step(self, digests: Collection[str]) -> None:
        """Name the adapters of the coming step; what has been copied since the last one becomes resident."""
        self._in_step = frozenset(digests)
        self._writer.begin_step()
        self.settle()

    def ensure(self, digest: str, image: SlotImage) -> int:
        """Return the slot of an adapter of the running step, written now if it has none.

        Raises:
            CapacityError: the step has more adapters of one class than `max_resident_adapters`.
        """
        pool = self._pools[image.class_index]
        slot = pool.use(digest)
        if slot is not None:
            return slot
        if digest in self._fills:
            self._fills[digest].is_wanted = True
            self._finish(digest)
        try:
            return self._fill_now(pool, digest, image)
        except CapacityError:
            # Copies that nobody needs now must not keep a slot from a step.
            self._finish_class(image.class_index)
            return self._fill_now(pool, digest, image)

    def _fill_now(self, pool: SlotPool, digest: str, image: SlotImage) -> int:
        return pool.ensure(digest, self._in_step, lambda slot: self._writer.write(slot, image))

    # Beside the steps --------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Make the adapters whose copies have completed resident."""
        for digest in [d for d, fill in self._fills.items() if fill.copy.is_done()]:
            self._finish(digest)

    def prefetch(self, digest: str, image: SlotImage) -> bool | None:
        """Copy an adapter into a free slot, or one whose adapter is neither pinned nor in the latest step.

        Returns: True when it is resident, None while the copy is under way (ask again), False when there is no such
        slot or the copy has failed.
        """
        self.settle()
        pool = self._pools[image.class_index]
        if pool.use(digest) is not None:
            return True
        if digest in self._failed:
            self._failed.discard(digest)
            return False
        if digest in self._fills:
            self._fills[digest].is_wanted = True
            return None
        slot = pool.reserve(digest, self._in_step)
        if slot is None:
            return False
        try:
            self._fills[digest] = _Fill(image.class_index, self._writer.begin(slot, image))
        except BaseException:
            pool.abandon(digest)
            raise
        return None

    def release(self, digest: str) -> None:
        """Free the slot of an adapter that no running request uses and end its pin."""
        self._failed.discard(digest)
        fill = self._fills.get(digest)
        if fill is not None:
            fill.is_wanted = False
            self._pools[fill.class_index].unpin(digest)
            self.settle()
        for pool in self._pools:
            pool.release(digest)

    def pin(self, digest: str, image: SlotImage) -> bool | None:
        """Give an adapter a slot that it keeps.

        Returns: True when it is resident, None while its copy is under way (ask again).

        Raises:
            CapacityError: its class has `max_pinned_adapters` pinned adapters.
            ShadowError: the copy failed.
        """
        pool = self._pools[image.class_index]
        pool.check_pin(digest)
        outcome = self.prefetch(digest, image)
        if outcome is False and pool.filling:
            return None  # other copies hold the last slots; they end
        if outcome is False:
            raise ShadowError(f"{digest} could not be copied into a slot to keep")
        pool.pin(digest)
        return outcome

    def unpin(self, digest: str) -> None:
        """Undo `pin`; unknown digests are ignored."""
        for pool in self._pools:
            pool.unpin(digest)

    # Introspection -----------------------------------------------------------------------------------------------

    @property
    def resident(self) -> dict[str, int]:
        """Digest to slot of every resident adapter."""
        return {digest: slot for pool in self._pools for digest, slot in pool.resident.items()}

    @property
    def pinned(self) -> frozenset[str]:
        """Digests that keep their slot."""
        return frozenset().union(*(pool.pinned for pool in self._pools))

    @property
    def num_free(self) -> int:
        """Slots of all classes without an adapter."""
        return sum(pool.num_free for pool in self._pools)

    def check_integrity(self) -> None:
        """Raise RuntimeError when an invariant of the class does not hold."""
        for index, pool in enumerate(self._pools):
            pool.check_integrity()
            copying = {d for d, fill in self._fills.items() if fill.class_index == index}
            if pool.filling.keys() != copying:
                raise RuntimeError(f"slots of class {index} are filled by nobody, or copied unseen")

    def _finish_class(self, class_index: int) -> None:
        for digest in [d for d, fill in self._fills.items() if fill.class_index == class_index]:
            self._finish(digest)

    def _finish(self, digest: str) -> None:
        fill = self._fills.pop(digest)
        pool = self._pools[fill.class_index]
        try:
            fill.copy.join()
        except Exception:
            logger.exception("Adapter %s could not be copied into its slot", digest)
            pool.abandon(digest)
            self._failed.add(digest)
            return
        pool.commit(digest)
        if not fill.is_wanted:
            pool.release(digest)
