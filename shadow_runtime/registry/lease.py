"""A request's hold on one adapter entry.

Runs in: API process.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from shadow_runtime.registry.entry import AdapterEntry


class Lease:
    """Pins an entry: until it is released, the entry's digest stays usable in the engine.

    Made by `AdapterRegistry.lease` only, on the event loop's thread. Releasing twice is harmless.
    """

    __slots__ = ("_on_release", "entry")

    def __init__(self, entry: AdapterEntry, on_release: Callable[[AdapterEntry], None]) -> None:
        self.entry = entry
        self._on_release: Callable[[AdapterEntry], None] | None = on_release

    def release(self) -> None:
        """Give the entry back; the last release of a draining entry starts its retirement."""
        on_release, self._on_release = self._on_release, None
        if on_release is not None:
            on_release(self.entry)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
