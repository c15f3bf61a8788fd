"""Errors on the wire: one body shape, and one table from exception to status, type and code.

Runs in: API process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse

from shadow_server.engine import runtime_errors as rt

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"


@dataclass(frozen=True, slots=True)
class ErrorRule:
    """How one kind of error is told to a client.

    Attributes:
        status: HTTP status.
        type: OpenAI error type.
        code: stable snake_case code.
        is_retryable: the same request may succeed later; adds a Retry-After header.
    """

    status: int
    type: str
    code: str
    is_retryable: bool = False


RULES: dict[type[rt.ShadowError], ErrorRule] = {
    rt.ShadowError: ErrorRule(500, SERVER_ERROR, "shadow_error"),
    rt.AdapterError: ErrorRule(422, INVALID_REQUEST, "adapter_invalid"),
    rt.AdapterFileError: ErrorRule(422, INVALID_REQUEST, "adapter_file_invalid"),
    rt.AdapterConfigError: ErrorRule(422, INVALID_REQUEST, "adapter_config_invalid"),
    rt.AdapterTensorError: ErrorRule(422, INVALID_REQUEST, "adapter_tensor_invalid"),
    rt.AdapterMismatchError: ErrorRule(422, INVALID_REQUEST, "adapter_base_mismatch"),
    rt.AdapterLimitError: ErrorRule(422, INVALID_REQUEST, "adapter_over_limit"),
    rt.AdapterNotFoundError: ErrorRule(404, INVALID_REQUEST, "adapter_not_found"),
    rt.AdapterExistsError: ErrorRule(409, INVALID_REQUEST, "adapter_exists"),
    rt.DigestMismatchError: ErrorRule(409, INVALID_REQUEST, "adapter_changed"),
    rt.CapacityError: ErrorRule(507, SERVER_ERROR, "adapter_capacity"),
    rt.ConfigError: ErrorRule(500, SERVER_ERROR, "config_invalid"),
    rt.UnsupportedStackError: ErrorRule(500, SERVER_ERROR, "unsupported_stack"),
}
"""Every error of the runtime, by class; a test asserts that none is missing."""

STATUS_RULES: dict[int, ErrorRule] = {
    400: ErrorRule(400, INVALID_REQUEST, "invalid_request"),
    401: ErrorRule(401, "authentication_error", "invalid_api_key"),
    403: ErrorRule(403, "permission_error", "forbidden"),
    404: ErrorRule(404, INVALID_REQUEST, "route_not_found"),
    405: ErrorRule(405, INVALID_REQUEST, "method_not_allowed"),
    409: ErrorRule(409, INVALID_REQUEST, "conflict"),
    413: ErrorRule(413, INVALID_REQUEST, "request_too_large"),
    415: ErrorRule(415, INVALID_REQUEST, "unsupported_media_type"),
    422: ErrorRule(422, INVALID_REQUEST, "unprocessable"),
    429: ErrorRule(429, "rate_limit_error", "rate_limit_exceeded", is_retryable=True),
    500: ErrorRule(500, SERVER_ERROR, "internal_error"),
    501: ErrorRule(501, SERVER_ERROR, "not_implemented"),
    503: ErrorRule(503, "service_unavailable_error", "unavailable", is_retryable=True),
    507: ErrorRule(507, SERVER_ERROR, "insufficient_storage"),
}
"""What a bare status means, for errors that say no more."""

RETRY_AFTER_SECONDS = 1


class ApiError(Exception):
    """A request that the server itself refuses."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.rule = rule_of_status(status, code)
        self.param = param


def rule_of_status(status: int, code: str | None = None) -> ErrorRule:
    """Return the rule of a status, with another code when one is given."""
    rule = STATUS_RULES.get(status) or ErrorRule(
        status,
        INVALID_REQUEST if status < 500 else SERVER_ERROR,
        "invalid_request" if status < 500 else "internal_error",
    )
    if code is None:
        return rule
    return ErrorRule(rule.status, rule.type, code, rule.is_retryable)


def rule_of(error: rt.ShadowError) -> ErrorRule:
    """Return the rule of the error's class, or of its nearest ancestor that has one."""
    return next(RULES[cls] for cls in type(error).__mro__ if cls in RULES)


def error_body(message: str, rule: ErrorRule, param: str | None = None) -> dict[str, Any]:
    """Return the OpenAI error object."""
    return {"error": {"message": message, "type": rule.type, "param": param, "code": rule.code}}


def error_response(message: str, rule: ErrorRule, param: str | None = None) -> JSONResponse:
    """Return the OpenAI error object as a response."""
    headers = {"retry-after": str(RETRY_AFTER_SECONDS)} if rule.is_retryable else None
    return JSONResponse(error_body(message, rule, param), rule.status, headers)


# An absolute path of two segments or more that does not belong to a URL.
_PATH = re.compile(r"(?<![\w:/.])/(?:[\w.@+~-]+/)+[\w.@+~-]*")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")


def scrub(message: str, visible_roots: Sequence[str] = ()) -> str:
    """Return the first line of `message` without memory addresses and without foreign paths.

    Paths inside `visible_roots` stay: a client that may load from there may read them.
    """

    def hide(match: re.Match[str]) -> str:
        path = match.group()
        is_visible = any(path == r or path.startswith(r.rstrip("/") + "/") for r in visible_roots)
        return path if is_visible else "<path>"

    line = message.strip().partition("\n")[0][:1000]
    return _PATH.sub(hide, _ADDRESS.sub("<address>", line))


_MAX_REPORTED_FIELDS = 5
# Segments of a pydantic location that name a branch of a union or a wrapper, not a field.
_BRANCH = re.compile(r"[\[\](){}]|^(?:body|str|int|float|bool|none|nullable|json-or-python)$")


def describe_validation(problems: Sequence[Any]) -> tuple[str, str | None]:
    """Return a one-sentence message and the parameter of a body that fails validation.

    Args:
        problems: pydantic's error entries. A client's value is never echoed: one bad array would
            otherwise be repeated once per element.
    """
    described: dict[str, str] = {}
    for problem in problems:
        if isinstance(problem, Mapping):
            described.setdefault(_field_of(problem), str(problem.get("msg", "invalid")))
        else:
            described.setdefault("body", str(problem))
    shown = [f"{name}: {text}" for name, text in list(described.items())[:_MAX_REPORTED_FIELDS]]
    message = "; ".join(shown) or "The request body is invalid"
    first = next(iter(described), "body")
    return scrub(message), None if first == "body" else first


def _field_of(problem: Mapping[str, Any]) -> str:
    # vLLM's own validators name the field in the exception that they raise.
    cause = (problem.get("ctx") or {}).get("error")
    named = getattr(cause, "parameter", None)
    if isinstance(named, str):
        return named
    parts = [str(part) for part in problem.get("loc", ())]
    return ".".join(p for p in parts if not _BRANCH.search(p)) or "body"
