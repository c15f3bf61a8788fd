"""The bounds of the host tier, and who makes room within them.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Container

from shadow_runtime.errors import CapacityError
from shadow_runtime.registry.eviction import WeightedRecency
from shadow_runtime.registry.holding import Holding, Holdings, Place


class HostRoom:
    """Counts places and bytes, and orders those that may leave.

    Args:
        holdings: what is in the tier.
        max_adapters: places.
        max_bytes: of all that have one; None for no bound.
    """

    def __init__(self, holdings: Holdings, max_adapters: int, max_bytes: int | None) -> None:
        self._holdings = holdings
        self._max_adapters = max_adapters
        self._max_bytes = max_bytes
        self._order = WeightedRecency()
        self._change = asyncio.Event()

    @property
    def num_bytes(self) -> int:
        """Host memory of all that have a place, in bytes."""
        return _num_bytes(self._occupants())

    def has_room(self, holding: Holding) -> bool:
        """Return whether a digest can come in now."""
        return self._fits(self._occupants(), holding)

    def can_have_room(self, holding: Holding) -> bool:
        """Return whether a digest could come in once all have left who may."""
        staying = [
            h for h in self._occupants() if h.place is not Place.LEAVING and not h.is_evictable
        ]
        return self._fits(staying, holding)

    def choose_victim(self, among: Container[str] | None = None) -> Holding | None:
        """Return who is to leave next, of all or of some digests; None when all who may are leaving already."""
        idle = {
            h.digest: h
            for h in self._occupants()
            if h.is_evictable and (among is None or h.digest in among)
        }
        # One whose engine call hangs is the last resort.
        at_rest = [digest for digest, h in idle.items() if not h.turn.locked()]
        digest = self._order.choose(at_rest or idle)
        return None if digest is None else idle[digest]

    def touch(self, holding: Holding) -> None:
        """Note a use of a digest that is there."""
        if holding.is_held:
            self._order.touch(holding.digest, holding.load_seconds)

    def demote(self, digest: str) -> None:
        """Let a digest leave before others: no name answers with it."""
        self._order.demote(digest)

    def note_left(self, digest: str) -> None:
        """Note that a digest has left."""
        self._order.forget(digest)

    async def wait(self) -> None:
        """Wait until somebody has left, or might be willing to now."""
        await self._change.wait()

    def signal(self) -> None:
        """Wake all who wait now; who comes later waits for the next time."""
        self._change.set()
        self._change.clear()

    def full(self) -> CapacityError:
        """Return the error of one who finds no room."""
        return CapacityError(
            f"all {self._max_adapters} places for adapters in host memory, or their bytes, are in use"
        )

    def check_integrity(self) -> None:
        """Raise RuntimeError when a bound does not hold."""
        occupants = self._occupants()
        if len(occupants) > self._max_adapters:
            raise RuntimeError(f"{len(occupants)} digests are in the host tier, over its bound")
        if self._max_bytes is not None and _num_bytes(occupants) > self._max_bytes:
            raise RuntimeError("the host tier holds more bytes than its bound")

    def _occupants(self) -> list[Holding]:
        return [h for h in self._holdings.all() if h.place is not Place.ABSENT]

    def _fits(self, others: Collection[Holding], holding: Holding) -> bool:
        num_bytes = _num_bytes(others) + holding.num_bytes
        has_place = len(others) < self._max_adapters
        return has_place and (self._max_bytes is None or num_bytes <= self._max_bytes)


def _num_bytes(holdings: Collection[Holding]) -> int:
    return sum(h.num_bytes for h in holdings)
