"""What a command writes: aligned columns for people, JSON for programs, progress for terminals only.

Runs in: the command's own process. Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO
from unicodedata import category

_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"
_UNITS = ("B", "kB", "MB", "GB", "TB")


def write_json(value: Any) -> None:
    """Write a value, of dataclasses too, as indented JSON."""
    sys.stdout.write(json.dumps(value, indent=2, default=_plain) + "\n")


def write_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write aligned columns, numbers to the right; the head is bold where colour is wanted."""
    cells = [[shown(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    head = _line(headers, widths)
    sys.stdout.write(f"{_BOLD}{head}{_PLAIN}\n" if is_coloured(sys.stdout) else f"{head}\n")
    sys.stdout.writelines(f"{_line(row, widths)}\n" for row in cells)


def write_fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Write one `name  value` a line; what is None is left out."""
    known = [(name, shown(value)) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in known), default=0)
    sys.stdout.writelines(f"{name:<{width}}  {value}\n" for name, value in known)


def write_note(text: str) -> None:
    """Write one line for people to standard error."""
    sys.stderr.write(f"{shown(text)}\n")


def shown(value: object) -> str:
    r"""Return a value as one line of text that only shows itself.

    Names, sources and reasons are other people's input, down to the names of tensors in a file. What is not printable
    is spelt out, `\x1b` say: it would move the cursor, set the terminal's title or turn the line around.
    """
    return "".join(map(_spelt, str(value)))


def shown_text(text: str) -> str:
    """Return a model's text for a terminal: lines and tabs stay, and what joins letters and emoji; see `shown`."""
    return "".join(c if c in "\n\t" or category(c) == "Cf" else _spelt(c) for c in text)


def _spelt(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


def is_coloured(stream: TextIO) -> bool:
    """Return whether colour is wanted there: on a terminal, unless NO_COLOR is set or the terminal is dumb."""
    is_refused = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return stream.isatty() and not is_refused


def spell_bytes(num_bytes: float) -> str:
    """Return `58.1 MB` and the like, in powers of 1,000."""
    size, unit = float(num_bytes), 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} {_UNITS[unit]}" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"


def short_digest(digest: str) -> str:
    """Return the first twelve hexadecimal digits, enough for people."""
    return digest.removeprefix("sha256:")[:12]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        f"{c:>{w}}" if c.replace(".", "", 1).isdecimal() else f"{c:<{w}}"
        for c, w in zip(cells, widths, strict=True)
    )
    return "  ".join(padded).rstrip()


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} is not written as JSON")
