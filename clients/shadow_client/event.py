"""Server-sent events out of bytes, as far as OpenAI's streams and the server's progress streams use them."""

from __future__ import annotations

from dataclasses import dataclass, field

DONE = "[DONE]"
"""Data of the last event of every whole stream."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `name` is `message` where the stream names none."""

    name: str
    data: str


@dataclass(slots=True)
class EventReader:
    """Takes bytes in any cut and gives an event at each blank line that ends one.

    Lines end where the format says, at CR, LF or both, and nowhere else: U+2028, which `str.splitlines` and httpx's
    `iter_lines` cut at, too, is text that a model may write.
    """

    _name: str = "message"
    _data: list[str] = field(default_factory=list)
    _pieces: list[bytes] = field(default_factory=list)

    def feed(self, piece: bytes) -> list[Event]:
        """Return the events that `piece` completes; comments count for nothing."""
        events = (self._read(line) for line in self._lines(piece))
        return [event for event in events if event is not None]

    def _lines(self, piece: bytes) -> list[str]:
        self._pieces.append(piece)
        # Nothing can end before a line end comes; a long line is not copied anew for each of its pieces.
        if b"\n" not in piece and b"\r" not in piece:
            return []
        lines = b"".join(self._pieces).splitlines(keepends=True)
        # A CR at the end of what is there may be half of a line end.
        is_whole = lines[-1].endswith(b"\n")
        self._pieces = [] if is_whole else [lines.pop()]
        return [line.rstrip(b"\r\n").decode(errors="replace") for line in lines]

    def _read(self, line: str) -> Event | None:
        if not line:
            return self._take()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._name = value
        return None

    def _take(self) -> Event | None:
        event = Event(self._name, "\n".join(self._data)) if self._data else None
        self._name, self._data = "message", []
        return event
