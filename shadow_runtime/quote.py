"""How untrusted text appears in an error message: short, printable, visibly quoted.

Runs in: API process | engine core | GPU worker. Imports neither torch nor vllm.
"""

from __future__ import annotations

from collections.abc import Iterable

_MAX_TEXT = 80
_MAX_NAMES = 3


def quote(text: object) -> str:
    """Return `text` as an ASCII literal of at most some 80 characters."""
    shown = ascii(text if isinstance(text, (str, int, float, bool)) else type(text).__name__)
    return shown if len(shown) <= _MAX_TEXT else f"{shown[:_MAX_TEXT]}...'"


def quote_first(names: Iterable[str]) -> str:
    """Return the first few of `names`, sorted and quoted, and how many more there are."""
    ordered = sorted(names)
    shown = ", ".join(quote(name) for name in ordered[:_MAX_NAMES])
    more = len(ordered) - _MAX_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
