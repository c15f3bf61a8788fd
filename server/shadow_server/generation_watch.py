"""Whether the engine generates: seen from the outputs that requests get, and tried out where there are none.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

logger = logging.getLogger(__name__)

_QUIET_SECONDS = 3.0
_PATIENCE_SECONDS = 5.0
_LOOK_SECONDS = 0.05


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
    """Answers whether generation works, in at most `patience_seconds`.

    Outputs of clients' requests are proof of life, so a busy engine is never asked for more, and a probe that waits in
    a long queue alarms nobody. After `quiet_seconds` without any output one token is generated, by whoever asks then;
    if nothing comes for `patience_seconds`, generation does not work. An engine that stops is so found out in the sum
    of both, whether it has requests or not.

    Ownership: one event loop. Invariant: at most one probe is under way.
    """

    def __init__(
        self,
        engine: Generator,
        *,
        quiet_seconds: float = _QUIET_SECONDS,
        patience_seconds: float = _PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch `engine`.

        Args:
            engine: what generates.
            quiet_seconds: how old the last output may be to be proof of life.
            patience_seconds: how long a probe may take while nothing else has output.
            clock: the one of `last_output_at`.
        """
        self._engine = engine
        self._quiet_seconds = quiet_seconds
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._probe: asyncio.Task[None] | None = None
        self._probed_at = 0.0

    async def find_reason(self) -> str | None:
        """Return one sentence why generation does not work, None when it does. Never raises."""
        if self._is_alive():
            return None
        probe = self._start_probe()
        patient_until = self._probed_at + self._patience_seconds
        while not probe.done() and self._clock() < patient_until:
            # Not cancelled when late: it is the proof of life that is waited for, unless other output comes first.
            await asyncio.wait({probe}, timeout=_LOOK_SECONDS)
            if self._is_alive():
                return None
        if self._is_alive():
            return None
        if probe.done() and not probe.cancelled() and probe.exception() is not None:
            return f"The engine cannot generate: {type(probe.exception()).__name__}"
        return "The engine does not generate: no output came in time"

    def _is_alive(self) -> bool:
        last = self._engine.last_output_at
        return last is not None and self._clock() - last < self._quiet_seconds

    def _start_probe(self) -> asyncio.Task[None]:
        if self._probe is None or self._probe.done():
            self._probed_at = self._clock()
            self._probe = asyncio.create_task(self._engine.generate_probe())
            self._probe.add_done_callback(_note_failure)
        return self._probe


def _note_failure(probe: asyncio.Task[None]) -> None:
    if not probe.cancelled() and (error := probe.exception()) is not None:
        logger.warning("The engine could not generate a token for the readiness probe: %s", error)
