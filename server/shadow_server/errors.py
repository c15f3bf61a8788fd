"""Errors on the wire: one body shape, and one table from every error to status, type, code and retryable.

Runs in: API process. `docs/errors.md` and the error answers of /openapi.json are made from the table.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse

from shadow_server.engine import runtime_errors as rt

INVALID_REQUEST = "invalid_request_error"
PERMISSION = "permission_error"
SERVER_ERROR = "server_error"
UNAVAILABLE = "service_unavailable_error"

RETRY_AFTER_SECONDS = 1


@dataclass(frozen=True, slots=True)
class ErrorRule:
    """How one kind of error is told to a client.

    Attributes:
        status: HTTP status.
        type: OpenAI error type.
        code: stable snake_case code.
        is_retryable: the same request may succeed later; told in the `x-should-retry` header.
        retry_after_seconds: of the Retry-After header, None for none. Every 429 and 503 has one.
        meaning: one sentence for the documents.
    """

    status: int
    type: str
    code: str
    is_retryable: bool = False
    retry_after_seconds: int | None = None
    meaning: str = ""


def _bad(status: int, code: str, meaning: str) -> ErrorRule:
    return ErrorRule(status, INVALID_REQUEST, code, meaning=meaning)


def _busy(code: str, meaning: str) -> ErrorRule:
    return ErrorRule(503, UNAVAILABLE, code, True, RETRY_AFTER_SECONDS, meaning)


def _broken(status: int, code: str, meaning: str) -> ErrorRule:
    return ErrorRule(status, SERVER_ERROR, code, meaning=meaning)


def _forbidden(code: str, meaning: str) -> ErrorRule:
    return ErrorRule(403, PERMISSION, code, meaning=meaning)


RULES: dict[type[rt.ShadowError], ErrorRule] = {
    rt.ShadowError: _broken(500, "shadow_error", "An error without a rule of its own."),
    rt.AdapterError: _bad(422, "adapter_invalid", "The adapter itself is at fault."),
    rt.AdapterFileError: _bad(
        422, "adapter_file_invalid", "A file is missing, truncated, too large or of an unsafe kind."
    ),
    rt.AdapterConfigError: _bad(
        422, "adapter_config_invalid", "A config field is missing, mistyped or out of range."
    ),
    rt.AdapterTensorError: _bad(
        422,
        "adapter_tensor_invalid",
        "A tensor is missing, unknown, of the wrong shape or dtype, or holds NaN or Inf.",
    ),
    rt.AdapterMismatchError: _bad(
        422, "adapter_base_mismatch", "The adapter was made for another base model."
    ),
    rt.AdapterLimitError: _bad(
        422, "adapter_over_limit", "The adapter is over a server limit or fits no slot class."
    ),
    rt.AdapterNotFoundError: _bad(
        404,
        "adapter_not_found",
        "No adapter, version or path of that name; another tenant's adapters answer the same.",
    ),
    rt.AdapterExistsError: _bad(409, "adapter_exists", "The name is taken by other bytes."),
    rt.DigestMismatchError: _bad(
        409, "adapter_changed", "The files changed after they were validated."
    ),
    rt.AdapterLoadingError: _busy(
        "adapter_loading", "The adapter was not resident within the wait; it is still on its way."
    ),
    rt.AdapterFailedError: _busy(
        "adapter_failed", "The adapter is registered and the engine could not load it."
    ),
    rt.SourceForbiddenError: _forbidden(
        "adapter_source_forbidden", "The operator has not allowed this source."
    ),
    rt.SourceUnavailableError: _busy(
        "adapter_source_unavailable", "The hub cannot be reached, fails, or takes too long."
    ),
    rt.QuotaError: ErrorRule(
        429,
        "insufficient_quota",
        "insufficient_quota",
        retry_after_seconds=60,
        meaning="A quota is used up that only deleting or unpinning something gives back.",
    ),
    rt.CapacityError: _broken(507, "adapter_capacity", "Every place is leased or pinned."),
    rt.StorageError: _broken(
        507, "storage_unavailable", "The adapter store cannot be read or written."
    ),
    rt.SandboxError: _busy(
        "sandbox_unavailable", "The process that validates adapters cannot run at the moment."
    ),
    rt.CatalogError: _busy("catalog_unavailable", "The registry's database cannot be reached."),
    rt.ConfigError: _broken(
        500, "config_invalid", "A server setting is out of range or contradicts another."
    ),
    rt.UnsupportedStackError: _broken(
        500, "unsupported_stack", "The vLLM version or the model architecture is not supported."
    ),
}
"""Every error of the runtime, by class; a test asserts that none is missing."""

STATUS_RULES: dict[int, ErrorRule] = {
    400: _bad(400, "invalid_request", "A field is missing, mistyped or out of range."),
    401: ErrorRule(
        401,
        "authentication_error",
        "invalid_api_key",
        meaning="The key is missing, malformed, unknown or revoked.",
    ),
    403: _forbidden("forbidden", "The key's role may not do this."),
    404: _bad(404, "route_not_found", "No such route."),
    405: _bad(405, "method_not_allowed", "The route does not take this method."),
    408: _bad(408, "request_timeout", "The body of the request stopped coming."),
    409: _bad(409, "conflict", "The request contradicts the server's state."),
    413: _bad(413, "request_too_large", "The body, or one part of it, is over the limit."),
    415: _bad(415, "unsupported_media_type", "The route does not take this content type."),
    422: _bad(422, "unprocessable", "The body is well-formed and cannot be acted on."),
    429: ErrorRule(
        429,
        "rate_limit_error",
        "rate_limit_exceeded",
        True,
        RETRY_AFTER_SECONDS,
        "Too many requests or tokens a minute, or too many requests at once.",
    ),
    431: _bad(431, "headers_too_large", "The headers are over the limit."),
    500: _broken(500, "internal_error", "The server failed on this request; the log says why."),
    501: _broken(501, "not_implemented", "The engine cannot do this."),
    503: _busy("unavailable", "The server cannot answer now."),
    507: _broken(507, "insufficient_storage", "No room is left."),
}
"""What a bare status means, for errors that say no more."""

_SERVER_RULES = (
    _bad(400, "invalid_json", "The body is not one strict JSON object."),
    _bad(400, "invalid_multipart", "The body is not well-formed multipart/form-data."),
    _bad(400, "adapter_name_invalid", "The adapter's name is malformed or the base model's."),
    _bad(400, "adapter_conflict", "`model` and `adapter` name different adapters."),
    _bad(400, "adapter_path_invalid", "The path cannot be one."),
    _bad(404, "model_not_found", "No model or adapter of that name."),
    _bad(404, "not_found", "The engine does not know what the request names."),
    _forbidden("adapter_path_forbidden", "The path is outside the directories open to loading."),
    _forbidden("base_model_forbidden", "The tenant may not use the bare base model."),
    _forbidden("admin_required", "The route needs an admin's key."),
    _busy("server_overloaded", "The queue is full."),
    _busy("not_ready", "The engine is not ready, or no longer."),
)

CODE_RULES: dict[str, ErrorRule] = {
    rule.code: rule for rule in (*STATUS_RULES.values(), *_SERVER_RULES, *RULES.values())
}
"""The whole table, by code: nothing else ever leaves this server in `error.code`, but codes of the engine's own."""


class ApiError(Exception):
    """A request that the server itself refuses."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.rule = rule_of_status(status, code)
        self.param = param
        self.headers = dict(headers or {})

    @classmethod
    def of(
        cls,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> ApiError:
        """Return the error that the table has under `code`; KeyError when it has none.

        Args:
            code: a key of `CODE_RULES`.
            message: one sentence for the caller.
            param: the request's field that is at fault.
            headers: of the answer, over those that the rule brings (Retry-After, say).
        """
        rule = CODE_RULES[code]
        return cls(rule.status, message, code=code, param=param, headers=headers)

    def response(self) -> JSONResponse:
        """Return the answer; for middleware, which no exception handler stands behind."""
        return error_response(self.message, self.rule, self.param, self.headers)


def rule_of_status(status: int, code: str | None = None) -> ErrorRule:
    """Return the rule of a code of the table, else the status's rule with that code."""
    known = CODE_RULES.get(code) if code is not None else None
    if known is not None and known.status == status:
        return known
    rule = STATUS_RULES.get(status) or ErrorRule(
        status,
        INVALID_REQUEST if status < 500 else SERVER_ERROR,
        "invalid_request" if status < 500 else "internal_error",
    )
    return rule if code is None else dataclasses.replace(rule, code=code)


def rule_of(error: rt.ShadowError) -> ErrorRule:
    """Return the rule of the error's class, or of its nearest ancestor that has one."""
    return next(RULES[cls] for cls in type(error).__mro__ if cls in RULES)


def error_body(message: str, rule: ErrorRule, param: str | None = None) -> dict[str, Any]:
    """Return the OpenAI error object."""
    return {"error": {"message": message, "type": rule.type, "param": param, "code": rule.code}}


def error_response(
    message: str,
    rule: ErrorRule,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Return the OpenAI error object as a response; `headers` go over the rule's own."""
    own = {"x-should-retry": "true" if rule.is_retryable else "false"}
    if rule.retry_after_seconds is not None:
        own["retry-after"] = str(rule.retry_after_seconds)
    given = {name.lower(): value for name, value in (headers or {}).items()}
    return JSONResponse(error_body(message, rule, param), rule.status, own | given)


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
