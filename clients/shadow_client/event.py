"""Server-sent events out of lines, as far as OpenAI's streams and the server's progress streams use them."""

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
    """Takes lines one at a time and gives an event at each blank line that ends one."""

    _name: str = "message"
    _data: list[str] = field(default_factory=list)

    def feed(self, line: str) -> Event | None:
        """Return the event that `line`, without its line end, completes; comments count for nothing."""
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
