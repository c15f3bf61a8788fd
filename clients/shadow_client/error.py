"""Everything that the client raises.

ShadowClientError
├── ConnectionFailedError          nothing answers, or the connection broke
│   └── TimedOutError              ... or was too slow
├── BadAnswerError                 an answer that is not one of ShadowServe's
├── StreamInterruptedError         a stream ended before its end
├── AdapterNotReadyError           an adapter failed or did not come within a wait
└── ApiError                       the server refused; by status, and below each its codes (`error_code`)
    ├── BadRequestError            400
    ├── AuthenticationError        401
    ├── PermissionDeniedError      403
    ├── NotFoundError              404
    ├── MethodNotAllowedError      405
    ├── RequestTimeoutError        408
    ├── ConflictError              409
    ├── RequestTooLargeError       413
    ├── UnsupportedMediaTypeError  415
    ├── UnprocessableError         422
    ├── TooManyRequestsError       429
    ├── HeadersTooLargeError       431
    └── ServerError                500 and above
        ├── NotSupportedError      501
        ├── UnavailableError       503
        └── OutOfSpaceError        507
"""

from __future__ import annotations

from typing import ClassVar

from shadow_client.info import ResponseInfo


class ShadowClientError(Exception):
    """Base of everything that the client raises; `str()` is one sentence for people."""


class ConnectionFailedError(ShadowClientError):
    """The server was not reached, or the connection broke.

    Attributes:
        was_sent: the server may have got the request, and may have acted on it.
    """

    def __init__(self, message: str, *, was_sent: bool = True) -> None:
        super().__init__(message)
        self.was_sent = was_sent


class TimedOutError(ConnectionFailedError):
    """The server took longer than the client's timeout."""


class BadAnswerError(ShadowClientError):
    """The answer is not one of ShadowServe's: another program answers there, say."""


class StreamInterruptedError(ShadowClientError):
    """A stream ended without its end; what came before is all there is."""


class AdapterNotReadyError(ShadowClientError):
    """A wait ended without the adapter: it failed, or the time was up."""


class ApiError(ShadowClientError):
    """The server refused a request.

    Attributes:
        message: one sentence for people; may change.
        status: HTTP status; of an error inside a stream, the one that its code has elsewhere.
        code: stable, see the server's table of errors; None from a proxy in between.
        type: OpenAI's error type.
        param: the field at fault, None when it is none.
        should_retry: the same request may succeed later; the server's word, else the table's.
        info: the answer's headers.
    """

    default_status: ClassVar[int] = 500
    own_code: ClassVar[str | None] = None
    is_retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        type: str | None = None,
        param: str | None = None,
        should_retry: bool | None = None,
        info: ResponseInfo | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = self.default_status if status is None else status
        self.code = self.own_code if code is None else code
        self.type = type
        self.param = param
        self.should_retry = self.is_retryable if should_retry is None else should_retry
        self.info = ResponseInfo() if info is None else info


class BadRequestError(ApiError):
    """400: the request itself is wrong."""

    default_status = 400


class AuthenticationError(ApiError):
    """401: no key, or not a valid one."""

    default_status = 401


class PermissionDeniedError(ApiError):
    """403: the key may not do this."""

    default_status = 403


class NotFoundError(ApiError):
    """404: no such adapter, model or route."""

    default_status = 404


class MethodNotAllowedError(ApiError):
    """405: the route does not take this method."""

    default_status = 405


class RequestTimeoutError(ApiError):
    """408: the request's body stopped coming."""

    default_status = 408


class ConflictError(ApiError):
    """409: the request contradicts the server's state."""

    default_status = 409


class RequestTooLargeError(ApiError):
    """413: the body is over the limit."""

    default_status = 413


class UnsupportedMediaTypeError(ApiError):
    """415: the route does not take this content type."""

    default_status = 415


class UnprocessableError(ApiError):
    """422: well-formed, and cannot be acted on: a bad adapter, mostly."""

    default_status = 422


class TooManyRequestsError(ApiError):
    """429: over a rate or a quota."""

    default_status = 429


class HeadersTooLargeError(ApiError):
    """431: the headers are over the limit."""

    default_status = 431


class ServerError(ApiError):
    """500 and above: the server's side."""


class NotSupportedError(ServerError):
    """501: the engine cannot do this."""

    default_status = 501


class UnavailableError(ServerError):
    """503: not now."""

    default_status = 503
    is_retryable = True


class OutOfSpaceError(ServerError):
    """507: no room is left."""

    default_status = 507


STATUS_ERRORS: dict[int, type[ApiError]] = {
    cls.default_status: cls
    for cls in (
        BadRequestError,
        AuthenticationError,
        PermissionDeniedError,
        NotFoundError,
        MethodNotAllowedError,
        RequestTimeoutError,
        ConflictError,
        RequestTooLargeError,
        UnsupportedMediaTypeError,
        UnprocessableError,
        TooManyRequestsError,
        HeadersTooLargeError,
        ServerError,
        NotSupportedError,
        UnavailableError,
        OutOfSpaceError,
    )
}
"""The class of each status; others are `ServerError` from 500 on and `ApiError` below."""


def status_error(status: int) -> type[ApiError]:
    """Return the class of a status."""
    return STATUS_ERRORS.get(status, ServerError if status >= 500 else ApiError)
