"""One error shape for everything that leaves the server, whoever wrote it.

Runs in: API process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shadow_server.engine import runtime_errors
from shadow_server.errors import (
    ApiError,
    ErrorRule,
    describe_validation,
    error_body,
    error_response,
    rule_of,
    rule_of_status,
    scrub,
)
from shadow_server.middleware.request_id import shown_id_of
from shadow_server.openai.rate_limit import refusal_response
from shadow_server.settings import ServerSettings
from shadow_server.tenancy.identity import identity_of
from shadow_server.tenancy.refusal import RefusalError

_MAX_ERROR_BYTES = 1 << 20
_STREAM_ERROR = b'data: {"error"'


class ErrorShapeMiddleware:
    """Rewrites error bodies to OpenAI's shape: vLLM's integer codes, FastAPI's `detail`, plain text.

    Only responses of status 400 and up are held back, and only until they are complete. In event
    streams the chunks that carry an error are rewritten; the others pass untouched.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application with its errors rewritten."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await self._app(scope, receive, _ErrorSender(send))


class _ErrorSender:
    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._held = message
        elif message["type"] == "http.response.body" and self._held is not None:
            self._body = (self._body + message.get("body", b""))[:_MAX_ERROR_BYTES]
            if not message.get("more_body", False):
                await self._send_rewritten(self._held)
        else:
            if message.get("body", b"").startswith(_STREAM_ERROR):
                message = {**message, "body": _rewrite_event(message["body"])}
            await self._send(message)

    async def _send_rewritten(self, start: Message) -> None:
        content = shape_error(start["status"], self._body)
        body = json.dumps(content).encode()
        kept = [
            (k.lower(), v)
            for k, v in start.get("headers", [])
            if k.lower() not in (b"content-length", b"content-type")
        ]
        if all(name != b"x-should-retry" for name, _ in kept):
            kept += _retry_headers(rule_of_status(start["status"], content["error"]["code"]), kept)
        kept += [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        await self._send({**start, "headers": kept})
        await self._send({"type": "http.response.body", "body": body})


def _retry_headers(
    rule: ErrorRule, given: list[tuple[bytes, bytes]]
) -> Iterator[tuple[bytes, bytes]]:
    # For the engine's own errors; the server's bring their headers.
    yield b"x-should-retry", b"true" if rule.is_retryable else b"false"
    if rule.retry_after_seconds is not None and all(name != b"retry-after" for name, _ in given):
        yield b"retry-after", str(rule.retry_after_seconds).encode()


def shape_error(status: int, body: bytes) -> dict[str, Any]:
    """Return the OpenAI error object for an error body of any origin; other keys of it are kept."""
    try:
        data = json.loads(body)
    except ValueError:
        data = {}
    if not isinstance(data, dict):
        data = {}
    error = data.get("error")
    if isinstance(error, dict):
        return {**data, **_shape_fields(status, error)}
    text = error if isinstance(error, str) else data.get("detail")
    rule = rule_of_status(status)
    return error_body(scrub(text) if isinstance(text, str) else rule.code, rule)


def _shape_fields(status: int, error: dict[str, Any]) -> dict[str, Any]:
    message, param, code = error.get("message"), error.get("param"), error.get("code")
    if isinstance(param, str):
        param = param.removeprefix("body.")
    rule = rule_of_status(status, code if isinstance(code, str) else _code(status, param))
    text = message if isinstance(message, str) and message else rule.code
    return error_body(text, rule, param if isinstance(param, str) else None)


def _code(status: int, param: str | None) -> str | None:
    if status != 404:
        return None
    return "model_not_found" if param == "model" else "not_found"


def _rewrite_event(event: bytes) -> bytes:
    payload = event.removeprefix(b"data: ").rstrip(b"\n")
    try:
        code = json.loads(payload)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return event
    status = code if isinstance(code, int) else 500
    return b"data: " + json.dumps(shape_error(status, payload)).encode() + b"\n\n"


def attach_errors(app: FastAPI, settings: ServerSettings) -> None:
    """Give `app` the server's exception handlers and, around everything else, the one error shape."""

    async def on_shadow_error(request: Request, error: Exception) -> Response:
        if not isinstance(error, runtime_errors.ShadowError):
            raise error
        is_admin = identity_of(request.scope).role == "admin"
        roots = settings.adapter_roots if is_admin else ()
        return error_response(scrub(str(error), roots), rule_of(error))

    app.add_exception_handler(ClientDisconnect, _on_client_left)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RefusalError, _on_refusal)
    app.add_exception_handler(runtime_errors.ShadowError, on_shadow_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_unknown_error)
    app.add_middleware(ErrorShapeMiddleware)


async def _on_client_left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _on_api_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return error.response()


async def _on_refusal(request: Request, error: Exception) -> Response:
    if not isinstance(error, RefusalError):
        raise error
    return refusal_response(error)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    problems = error.errors() if isinstance(error, RequestValidationError) else ()
    message, param = describe_validation(problems)
    return error_response(message, rule_of_status(400), param)


async def _on_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    response = error_response(_http_message(request, error), rule_of_status(error.status_code))
    response.headers.update(error.headers or {})
    return response


async def _on_unknown_error(request: Request, error: Exception) -> Response:
    # The server error middleware logs the traceback; the client learns nothing from it. This answer passes no
    # middleware any more.
    shown = shown_id_of(request.scope)
    headers = None if shown is None else {"x-request-id": shown}
    return error_response("The server failed on this request", _INTERNAL, headers=headers)


_INTERNAL: ErrorRule = rule_of_status(500)


def _http_message(request: Request, error: HTTPException) -> str:
    if error.status_code == 404 and error.detail == "Not Found":
        return f"No route for {request.method} {request.url.path[:256]}"
    if error.status_code == 405:
        return f"{request.method} is not allowed on {request.url.path[:256]}"
    return scrub(str(error.detail))
