"""From a finished HTTP answer to a result or an error."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import httpx

from shadow_client.call import Call
from shadow_client.error import (
    ApiError,
    BadAnswerError,
    ConnectionFailedError,
    ShadowClientError,
    TimedOutError,
    status_error,
)
from shadow_client.error_code import CODE_ERRORS
from shadow_client.info import ResponseInfo, read_info

ResultT = TypeVar("ResultT")

_NO_JSON = (ValueError, RecursionError)
"""What reading JSON raises: the latter for a thousand brackets."""

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


def info_of(response: httpx.Response) -> ResponseInfo:
    """Return what the headers say."""
    return read_info(response.status_code, response.headers)


def result_of(call: Call[ResultT], response: httpx.Response) -> ResultT:
    """Return the result of a success that was read.

    Raises:
        BadAnswerError: the body is not what the call expects.
    """
    try:
        return call.read(response.json(), info_of(response))
    except (*_NO_JSON, KeyError, TypeError, AttributeError) as error:
        raise BadAnswerError(
            f"{call.path} answered something else than ShadowServe does"
        ) from error


def error_of(response: httpx.Response) -> ApiError:
    """Return the error of an answer that was read; a body of another shape has a proxy's status only."""
    try:
        body = response.json()
    except _NO_JSON:
        body = None
    said = response.headers.get("x-should-retry")
    return error_from_body(
        body,
        info_of(response),
        should_retry=said == "true" if said in ("true", "false") else None,
    )


def error_from_body(body: Any, info: ResponseInfo, *, should_retry: bool | None = None) -> ApiError:
    """Return the error that an error object means, in an answer or inside a stream.

    Args:
        body: parsed JSON, of any shape.
        info: of the answer; a status of success, as a stream has, is replaced by the code's own.
        should_retry: what the answer says of that.
    """
    fields = body.get("error") if isinstance(body, dict) else None
    fields = fields if isinstance(fields, dict) else {}
    code, message = fields.get("code"), fields.get("message")
    known = CODE_ERRORS.get(code) if isinstance(code, str) else None
    is_refusal = not 200 <= info.status < 300
    status = info.status if is_refusal else known.default_status if known else 500
    # A code of the table under another status is no error of the table.
    cls = known if known is not None and known.default_status == status else status_error(status)
    return cls(
        message if isinstance(message, str) else f"The server answered {status}",
        status=status,
        code=code if isinstance(code, str) else None,
        type=fields.get("type"),
        param=fields.get("param"),
        should_retry=should_retry,
        info=info,
    )


def stream_error(data: str, info: ResponseInfo) -> ApiError | None:
    """Return the error that an event of a stream carries, None for one that carries none."""
    if '"error"' not in data:
        return None
    body = parse_event(data)
    return error_from_body(body, info) if isinstance(body.get("error"), dict) else None


def parse_event(data: str) -> dict[str, Any]:
    """Return an event's object; raises BadAnswerError when it is none."""
    try:
        body = json.loads(data)
    except _NO_JSON:
        body = None
    if not isinstance(body, dict):
        raise BadAnswerError("an event of the stream is not a JSON object")
    return body


def shown_url(url: httpx.URL | str) -> str:
    """Return an address for people, without a user and password in it."""
    return str(httpx.URL(url).copy_with(userinfo=b""))


def request_error(error: httpx.RequestError, url: httpx.URL | str) -> ShadowClientError:
    """Return the client's error of a request that got no whole answer.

    Args:
        error: of httpx.
        url: the server's, for the message.
    """
    url = shown_url(url)
    if not isinstance(error, httpx.TransportError):
        return BadAnswerError(f"{url} answered what cannot be read: {error}")
    was_sent = not isinstance(error, _NOT_SENT)
    if isinstance(error, httpx.TimeoutException):
        return TimedOutError(f"{url} did not answer in time", was_sent=was_sent)
    reason = str(error) or type(error).__name__
    what = "broke the connection" if was_sent else "cannot be reached"
    return ConnectionFailedError(f"{url} {what}: {reason}", was_sent=was_sent)
