"""Tokens taken in advance, and what requests turned out to cost.

Runs in: API process. Pure.
"""

from __future__ import annotations

from collections import deque

from shadow_server.tenancy.bucket import TokenBucket

_MAX_ENDED = 4096


class Reservation:
    """One request's tokens, from its admission on.

    A request that ran is charged what the engine reported, as soon as it has ended; until then, and when nothing
    is ever reported (a client that left before the first token, statistics switched off), what was reserved. One that
    never ran is charged nothing. Reports that come after the end are charged as they come.
    """

    __slots__ = ("_bucket", "_charged", "_has_report", "_is_ended", "_reserved", "_used", "has_run")

    def __init__(self, bucket: TokenBucket, num_tokens: int) -> None:
        """Account for `num_tokens` that were already taken from `bucket`."""
        self._bucket = bucket
        self._reserved = self._charged = num_tokens
        self._used = 0
        self._has_report = self._is_ended = False
        self.has_run = False

    def add(self, num_tokens: int) -> None:
        """Take a report of the engine."""
        self._has_report = True
        self._used += num_tokens
        if self._is_ended:
            self._settle()

    def end(self) -> None:
        """The request has ended: give back what it did not need, or take what it took beyond."""
        self._is_ended = True
        self._settle()

    def _settle(self) -> None:
        unknown = self._reserved if self.has_run else 0
        owed = self._used if self._has_report else unknown
        self._bucket.charge(owed - self._charged)
        self._charged = owed


class UsageLedger:
    """The engine's `UsageSink`: brings reports to their request's reservation, by tag.

    Invariant: holds every open reservation and the last few thousand ended ones, for late reports.
    """

    def __init__(self, max_ended: int = _MAX_ENDED) -> None:
        self._by_tag: dict[str, Reservation] = {}
        self._ended: deque[str] = deque()
        self._max_ended = max_ended

    def __len__(self) -> int:
        return len(self._by_tag)

    def open(self, tag: str, bucket: TokenBucket, num_tokens: int) -> Reservation:
        """Return the account of a request whose tokens were taken; `tag` is unique."""
        reservation = self._by_tag[tag] = Reservation(bucket, num_tokens)
        return reservation

    def close(self, tag: str) -> None:
        """The request has ended; unknown tags are ignored."""
        reservation = self._by_tag.get(tag)
        if reservation is None:
            return
        reservation.end()
        self._ended.append(tag)
        if len(self._ended) > self._max_ended:
            del self._by_tag[self._ended.popleft()]

    def observe_usage(self, tag: str, num_prompt_tokens: int, num_generated_tokens: int) -> None:
        """Take the usage of one ended sequence."""
        reservation = self._by_tag.get(tag)
        if reservation is not None:
            reservation.add(num_prompt_tokens + num_generated_tokens)
