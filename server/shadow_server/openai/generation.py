"""The routes that run the engine: each holds its adapter from before the first token to the last.

Runs in: API process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from shadow_server.engine import AdapterEntry, Engine, Lease, runtime_errors
from shadow_server.errors import ApiError
from shadow_server.openai.body import read_json_object
from shadow_server.openai.resolve import resolve_adapter
from shadow_server.settings import ServerSettings

ADAPTER_HEADER = "x-shadow-adapter"
DIGEST_HEADER = "x-shadow-adapter-digest"

Handler = Callable[[dict[str, Any], Request, AdapterEntry | None], Awaitable[Response]]


class GenerationEndpoint:
    """One engine route as an ASGI application.

    ASGI and not a FastAPI handler, so that one `with` spans the response too: the lease ends when
    the last byte was sent, or the client left, or anything was raised, and at no other time.
    """

    def __init__(self, engine: Engine, settings: ServerSettings, handler: Handler) -> None:
        self._engine = engine
        self._settings = settings
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Resolve, lease, answer, release."""
        request = Request(scope, receive, send)
        try:
            body = await read_json_object(request, self._settings.max_body_bytes)
        except ClientDisconnect:
            return
        adapters = self._engine.adapters
        name = resolve_adapter(body, self._engine.base_names, adapters.has)
        if name is None:
            await (await self._handler(body, request, None))(scope, receive, send)
            return
        with self._lease(name) as lease:
            response = await self._handler(body, request, lease.entry)
            _sign(response, lease)
            await response(scope, receive, send)

    def _lease(self, name: str) -> Lease:
        try:
            return self._engine.adapters.lease(name)
        except runtime_errors.AdapterNotFoundError as error:
            code = runtime_errors.AdapterNotFoundError.code
            raise ApiError(404, str(error), code=code, param="adapter") from None


def _sign(response: Response, lease: Lease) -> None:
    response.headers[ADAPTER_HEADER] = lease.entry.name
    response.headers[DIGEST_HEADER] = lease.entry.digest


def attach_generation(app: FastAPI, engine: Engine, settings: ServerSettings) -> None:
    """Add the completion, chat and tokenizer routes to `app`."""
    handlers: dict[str, Handler] = {
        "/v1/completions": engine.complete,
        "/v1/chat/completions": engine.chat,
        "/tokenize": engine.tokenize,
        "/detokenize": engine.detokenize,
    }
    for path, handler in handlers.items():
        endpoint = GenerationEndpoint(engine, settings, handler)
        app.router.routes.append(Route(path, endpoint, methods=["POST"]))
