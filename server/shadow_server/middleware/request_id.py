"""Request ids: the client's is echoed, the engine sees one of ours.

Runs in: API process.

The engine keys its requests by id, so an id that a client chose could meet another request's.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADER = b"x-request-id"
_INTERNAL_KEY = "shadow.request_id"
_SHOWN_KEY = "shadow.shown_request_id"
_ACCEPTED = re.compile(rb"[\x21-\x7e]{1,128}")


def internal_id_of(scope: Mapping[str, Any]) -> str:
    """Return the id that the engine knows a request by; unique, and nothing of it is the client's."""
    found = scope.get(_INTERNAL_KEY)
    return found if isinstance(found, str) else uuid.uuid4().hex


def shown_id_of(scope: Mapping[str, Any]) -> str | None:
    """Return the id in the answer's `x-request-id`, None outside of the middleware."""
    found = scope.get(_SHOWN_KEY)
    return found if isinstance(found, str) else None


class RequestIdMiddleware:
    """Gives every request an id of ours, and every answer the client's id if that is a sound one.

    Sound is 1 to 128 printable ASCII characters without spaces, given once; otherwise ours is shown.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application with the id exchanged."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        ours = uuid.uuid4().hex
        given = [value for name, value in scope["headers"] if name == _HEADER]
        is_sound = len(given) == 1 and _ACCEPTED.fullmatch(given[0]) is not None
        shown = given[0] if is_sound else ours.encode()
        # In place: the handlers of unexpected errors, outside of this middleware, have the same scope.
        scope[_INTERNAL_KEY], scope[_SHOWN_KEY] = ours, shown.decode()
        scope["headers"] = [*_without_id(scope["headers"]), (_HEADER, ours.encode())]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*_without_id(message.get("headers", ())), (_HEADER, shown)]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_with_id)


def _without_id(headers: Any) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name.lower() != _HEADER]
