"""Who has labels of their own when not everybody can.

Runs in: API process. Pure; the clock is an argument.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
RowT = TypeVar("RowT")

# A newcomer takes a place only from a key with less than half of its recent requests, so two equally busy ones do not
# take turns.
_TAKEOVER_RATIO = 2
_HALVING_REQUESTS = 4096
_RETIRING_SECONDS = 60.0


class BusiestRows(Generic[KeyT, RowT]):
    """At most `max_rows` keys have a row of counters of their own: the busiest by recent requests.

    A count is made in one row, where its key has its place at that moment, and is never moved: an adapter's past that
    is added to another row would look like a burst of traffic there. So rates summed over all rows are exact, whoever
    moves when. For that, places change hands at scrapes only:

        free place     a key has it with its first request
        own row        counts there; may be asked to leave at a scrape, if a challenger is twice as busy
        leaving        counts elsewhere already; shown unchanged for a minute, so that all who scrape have seen it
        joining        the place is free: the busiest challenger's row is shown at zero, and counts from then on

    Invariants: (1) at most `max_rows` rows are shown; (2) no row decreases while it is shown; (3) a challenger's row
    was shown at zero before it counted.

    Ownership: `find` and `count` on the event loop's thread; `rebalance`, `shown` and `settle`, in this order, by one
    scraping thread at a time.
    """

    def __init__(
        self,
        max_rows: int,
        new_row: Callable[[], RowT],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start without rows.

        Args:
            max_rows: 0 or more.
            new_row: makes a row at zero.
            clock: seconds, never backwards.
        """
        self._max_rows = max_rows
        self._new_row = new_row
        self._clock = clock
        self._rows: dict[KeyT, RowT] = {}
        self._leaving: dict[KeyT, tuple[RowT, float]] = {}
        self._joining: dict[KeyT, RowT] = {}
        self._recent: dict[KeyT, int] = {}
        self._num_requests = 0

    def find(self, key: KeyT) -> RowT | None:
        """Return the key's own row, None when it has none now."""
        return self._rows.get(key)

    def count(self, key: KeyT) -> None:
        """Note a request of a key; it gets a row if there is a free place."""
        self._num_requests += 1
        if self._num_requests % _HALVING_REQUESTS == 0:
            halved = ((name, count // 2) for name, count in self._recent.items())
            self._recent = {name: count for name, count in halved if count}
        self._recent[key] = self._recent.get(key, 0) + 1
        if key not in self._rows and self._num_free() > 0 and not self._is_moving(key):
            self._rows[key] = self._new_row()

    def rebalance(self) -> None:
        """Let places change hands; called once at each scrape, before `shown`."""
        now = self._clock()
        gone = [k for k, (_, at) in self._leaving.items() if now - at >= _RETIRING_SECONDS]
        challengers = self._challengers()
        num_joining = self._num_free() + len(gone)
        # Who joins takes the place before it is given up: a request in between finds none that is free.
        self._joining = {key: self._new_row() for key in challengers[:num_joining]}
        for key in gone:
            del self._leaving[key]
        # Those that leave already make room for the next ones.
        self._ask_to_leave(challengers[num_joining + len(self._leaving) :], now)

    def shown(self) -> list[tuple[KeyT, RowT]]:
        """Return the rows to show."""
        leaving = [(key, row) for key, (row, _) in self._leaving.items()]
        return [*list(self._rows.items()), *self._joining.items(), *leaving]

    def settle(self) -> None:
        """Let the rows count that were shown at zero for the first time."""
        self._rows.update(self._joining)
        self._joining = {}

    def _num_free(self) -> int:
        return self._max_rows - len(self._rows) - len(self._leaving) - len(self._joining)

    def _is_moving(self, key: KeyT) -> bool:
        return key in self._leaving or key in self._joining

    def _challengers(self) -> list[KeyT]:
        """Return the busiest keys without a row, the busiest first."""
        recent = list(self._recent.items())
        outside = [(n, k) for k, n in recent if k not in self._rows and not self._is_moving(k)]
        return [k for _, k in heapq.nlargest(self._max_rows, outside, key=lambda pair: pair[0])]

    def _ask_to_leave(self, challengers: list[KeyT], now: float) -> None:
        """Start the leaving of those that are far quieter than the challengers without a place in sight."""
        quietest = sorted(self._rows, key=lambda key: self._recent.get(key, 0))
        for challenger, key in zip(challengers, quietest, strict=False):
            if self._recent.get(challenger, 0) <= _TAKEOVER_RATIO * self._recent.get(key, 0):
                return
            self._leaving[key] = (self._rows[key], now)
            del self._rows[key]
