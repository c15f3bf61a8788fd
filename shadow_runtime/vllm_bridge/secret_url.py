"""A URL that may hold a password, and never shows it.

Runs in: API process.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_HIDDEN = "***"
_PLAIN_PATH = re.compile(r"(/[\w.-]*)?")


class SecretUrl:
    """A URL as the operator wrote it, for who opens it; for everybody else without password and query.

    vLLM logs the command line, its values by `repr`, text as it is and dataclasses with all their fields. So this is
    none of these.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        """Keep `text`."""
        self._text = text

    def reveal(self) -> str:
        """Return the whole URL."""
        return self._text

    def __str__(self) -> str:
        """Return the URL without what may be secret."""
        scheme, separator, _ = self._text.partition("://")
        return f"{scheme}://{_shown_place(self._text)}" if separator else _HIDDEN

    def __repr__(self) -> str:
        """Return the same, marked as what it is."""
        return f"<{self}>"

    def __eq__(self, other: object) -> bool:
        """Return whether both are the same URL, passwords included."""
        return isinstance(other, SecretUrl) and other._text == self._text

    def __hash__(self) -> int:
        """Return what agrees with `__eq__`."""
        return hash(self._text)


def has_password(text: str) -> bool:
    """Return whether a URL has a user with a password, or what may be one written wrongly."""
    authority = text.partition("://")[2]
    return ":" in authority.rpartition("@")[0]


def _shown_place(text: str) -> str:
    """Return user, host, port and database; nothing of a URL whose parts a special character may have moved."""
    try:
        parts = urlsplit(text)
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        return _HIDDEN
    rest = text.partition("://")[2].partition("@")[2] if "@" in parts.netloc else text
    if "@" in rest or _PLAIN_PATH.fullmatch(parts.path) is None:
        return _HIDDEN
    user = "" if "@" not in parts.netloc else f"{parts.username or ''}"
    secret = "" if parts.password is None else f":{_HIDDEN}"
    login = f"{user}{secret}@" if user or secret else ""
    query = f"?{_HIDDEN}" if parts.query or parts.fragment else ""
    return f"{login}{parts.hostname or ''}{port}{parts.path}{query}"
