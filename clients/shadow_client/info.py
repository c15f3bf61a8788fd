"""What an answer's headers say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_MAX_DIGITS = 18
"""No version or rate is longer; Python refuses to read numbers of some thousand digits."""

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?")


@dataclass(frozen=True, slots=True)
class RateLimit:
    """One of the caller's rates, as it was when the server answered.

    Attributes:
        limit: requests or tokens a minute.
        remaining: what is left now.
        reset_seconds: until all of it is there again; None when the server does not say.
    """

    limit: int
    remaining: int
    reset_seconds: float | None


@dataclass(frozen=True, slots=True)
class ResponseInfo:
    """Who answered, and under which limits.

    Attributes:
        status: HTTP status, 0 for what is not from an answer of its own.
        request_id: what the server's log calls the request.
        adapter: name of the adapter that answered, None for the base model.
        adapter_version: its version.
        adapter_digest: `sha256:<hex>`, what that version *is*.
        retry_after_seconds: how long the server asks to wait.
        request_rate, token_rate: the caller's rates, None where it has none.
        headers: all of them, names in lower case.
    """

    status: int = 0
    request_id: str | None = None
    adapter: str | None = None
    adapter_version: int | None = None
    adapter_digest: str | None = None
    retry_after_seconds: float | None = None
    request_rate: RateLimit | None = None
    token_rate: RateLimit | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def read_info(status: int, headers: Mapping[str, str]) -> ResponseInfo:
    """Return what an answer's headers say; a malformed one counts as absent.

    Args:
        status: HTTP status.
        headers: by name, in any case.
    """
    known = {name.lower(): value for name, value in headers.items()}
    return ResponseInfo(
        status=status,
        request_id=known.get("x-request-id"),
        adapter=known.get("x-shadow-adapter"),
        adapter_version=_whole(known.get("x-shadow-adapter-version")),
        adapter_digest=known.get("x-shadow-adapter-digest"),
        retry_after_seconds=read_retry_after(known.get("retry-after")),
        request_rate=_rate(known, "requests"),
        token_rate=_rate(known, "tokens"),
        headers=known,
    )


def read_retry_after(text: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds of a Retry-After header, which has seconds or a date; None when it has neither.

    Args:
        text: the header, None when it is absent.
        now: what a date is counted from; None for the present.
    """
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter of a year beyond C's integers
        return None
    # A date without a zone is UTC (RFC 9110).
    date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


def _rate(headers: Mapping[str, str], unit: str) -> RateLimit | None:
    limit = _whole(headers.get(f"x-ratelimit-limit-{unit}"))
    remaining = _whole(headers.get(f"x-ratelimit-remaining-{unit}"))
    if limit is None or remaining is None:
        return None
    return RateLimit(limit, remaining, read_duration(headers.get(f"x-ratelimit-reset-{unit}")))


def read_duration(text: str | None) -> float | None:
    """Return the seconds of a duration as OpenAI spells it: `120ms`, `8s`, `6m0s`, `1h0m5s`."""
    match = _DURATION.fullmatch(text) if text else None
    if match is None:
        return None
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def _whole(text: str | None) -> int | None:
    if text is None or not text.isascii() or not text.isdecimal():
        return None
    return int(text) if len(text) <= _MAX_DIGITS else None
