"""How a request for generation ended, as its client saw it.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastapi.exceptions import RequestValidationError
from starlette.types import Message, Send

from shadow_server.engine import runtime_errors
from shadow_server.errors import CODE_RULES, ApiError, rule_of
from shadow_server.observability.request import Outcome
from shadow_server.tenancy.refusal import RefusalError

_STREAM_ERROR = b'data: {"error"'
_CLIENT_LEFT_STATUS = 499
_REJECTED = (429, 503)


class AnswerWatch:
    """Stands between one request's application and the `send` of its connection; every message passes untouched."""

    __slots__ = ("_before_end", "_has_failed", "_is_complete", "_send", "_status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._before_end: Callable[[], None] | None = None
        self._status: int | None = None
        self._is_complete = self._has_failed = False

    async def __call__(self, message: Message) -> None:
        """Pass a message on."""
        if message["type"] == "http.response.body":
            if message.get("body", b"").startswith(_STREAM_ERROR):
                self._has_failed = True
            self._is_complete = not message.get("more_body", False)
            if self._is_complete and self._before_end is not None:
                self._before_end()
        elif message["type"] == "http.response.start":
            self._status = message["status"]
        await self._send(message)

    def call_before_end(self, act: Callable[[], None]) -> None:
        """Have `act` called right before the answer's last byte is passed on; in place of an earlier one."""
        self._before_end = act

    def status(self, error: BaseException | None) -> int:
        """Return the status of the answer; `error` is what the application raised, which others make an answer of."""
        if self._status is not None:
            return self._status
        return _CLIENT_LEFT_STATUS if error is None else _status_of(error)

    def outcome(self, error: BaseException | None) -> Outcome:
        """Return how it ended; `error` is what the application raised, None for nothing."""
        if error is not None:
            return _outcome_of_status(_status_of(error))
        if self._status is None or (self._status < 400 and not self._is_complete):
            return "aborted"
        return "error" if self._has_failed else _outcome_of_status(self._status)


def _status_of(error: BaseException) -> int:
    if isinstance(error, RefusalError):
        return CODE_RULES[error.code].status
    if isinstance(error, ApiError):
        return error.rule.status
    if isinstance(error, runtime_errors.ShadowError):
        return rule_of(error).status
    if isinstance(error, RequestValidationError):
        return 400
    return _CLIENT_LEFT_STATUS if isinstance(error, asyncio.CancelledError) else 500


def _outcome_of_status(status: int) -> Outcome:
    if status == _CLIENT_LEFT_STATUS:
        return "aborted"
    if status in _REJECTED:
        return "rejected"
    if status >= 500:
        return "error"
    return "invalid" if status >= 400 else "ok"
