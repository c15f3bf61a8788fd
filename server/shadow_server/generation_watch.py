"""Whether the engine generates: seen from the outputs that requests get, and tried out where there are none.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Protocol

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 1.0
"""How long an answer may take: whoever asks gives up after a few seconds, and then sees no reason."""

_QUIET_SECONDS = 3.0
_PATIENCE_SECONDS = 5.0
_INTEREST_SECONDS = 30.0
_RETRY_SECONDS = 1.0
_LOOK_SECONDS = 0.1

_UNTRIED = "The engine has not generated a token yet"
_SILENT = "The engine does not generate: no output came in time"


class Generator(Protocol):
    """As much of an engine as is watched; see `Engine`."""

    @property
    def last_output_at(self) -> float | None:
        """Monotonic instant of the last output."""
        ...

    async def generate_probe(self) -> None:
        """Generate one token."""
        ...


class GenerationWatch:
    """Knows whether generation works, and says so at once.

    Outputs of clients' requests are proof of life, so a busy engine is never asked for more, and a probe that waits in
    a long queue alarms nobody. After `quiet_seconds` without any output one token is generated; when `patience_seconds`
    more bring nothing, generation does not work. An engine that stops is so found out in the sum of both, whether it
    has requests or not, and until then the last verdict holds.

    The watch goes on by itself, not only while somebody waits for an answer: a verdict takes longer than an
    orchestrator waits. It ends when nobody has asked for `interest_seconds`, so an idle server that nobody probes
    generates nothing.

    Ownership: one event loop. Invariants: at most one probe is under way; only the first question after a time without
    any waits, `answer_seconds` at most.
    """

    def __init__(
        self,
        engine: Generator,
        *,
        quiet_seconds: float = _QUIET_SECONDS,
        patience_seconds: float = _PATIENCE_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
        interest_seconds: float = _INTEREST_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch `engine` from the first question on.

        Args:
            engine: what generates.
            quiet_seconds: how old the last output may be to be proof of life.
            patience_seconds: how long a probe may take while nothing else has output.
            answer_seconds: how long an answer may wait for the first verdict.
            interest_seconds: how long after the last question the watch goes on.
            clock: the one of `last_output_at`.
        """
        self._engine = engine
        self._quiet_seconds = quiet_seconds
        self._patience_seconds = patience_seconds
        self._answer_seconds = answer_seconds
        self._interest_seconds = interest_seconds
        self._clock = clock
        self._asked_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._probe: asyncio.Task[str | None] | None = None
        self._probed_at = 0.0
        self._reason: str | None = _UNTRIED
        self._is_judged = asyncio.Event()

    async def find_reason(self) -> str | None:
        """Return one sentence why generation does not work, None when it does. Never raises."""
        self._asked_at = self._clock()
        if self._task is None or self._task.done():
            self._begin()
        if self._is_alive():
            return None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._answer_seconds):
                await self._is_judged.wait()
        return self._reason

    def _begin(self) -> None:
        self._is_judged.clear()
        if self._probe is not None and self._probe.done():
            self._probe = None  # what it said is old
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while self._clock() - self._asked_at < self._interest_seconds:
            self._judge()
            if self._probe is None or self._probe.done():
                await asyncio.sleep(_LOOK_SECONDS)
            else:
                # Not cancelled when late: it is the proof of life that is waited for, unless other output comes first.
                await asyncio.wait({self._probe}, timeout=_LOOK_SECONDS)

    def _judge(self) -> None:
        probe = self._probe
        if self._is_alive():
            self._settle(None)
        elif probe is None or probe.cancelled():
            self._start_probe()
        elif not probe.done():
            if self._is_late():
                self._settle(_SILENT)
        elif (fault := probe.result()) is not None:
            self._settle(fault)
            self._start_probe(after_seconds=_RETRY_SECONDS)
        else:
            self._start_probe()

    def _is_alive(self) -> bool:
        return self._silent_seconds() < self._quiet_seconds

    def _is_late(self) -> bool:
        # The probe may be an old one that waits in the queue: a pause of the others begins its time anew.
        probe_seconds = self._clock() - self._probed_at
        silent_seconds = self._silent_seconds() - self._quiet_seconds
        return min(probe_seconds, silent_seconds) >= self._patience_seconds

    def _silent_seconds(self) -> float:
        last = self._engine.last_output_at
        return float("inf") if last is None else self._clock() - last

    def _settle(self, reason: str | None) -> None:
        self._reason = reason
        self._is_judged.set()

    def _start_probe(self, after_seconds: float = 0.0) -> None:
        now = self._clock()
        if now - self._probed_at >= after_seconds:
            self._probed_at = now
            self._probe = asyncio.create_task(self._find_fault(now))

    async def _find_fault(self, started_at: float) -> str | None:
        """Generate a token; returns what that says against the engine."""
        try:
            await self._engine.generate_probe()
        except Exception as error:
            logger.warning("The engine could not generate a token for readiness: %s", error)
            return f"The engine cannot generate: {type(error).__name__}"
        last = self._engine.last_output_at
        return _SILENT if last is None or last < started_at else None
