"""Every operation of the server, as the API documents tell it.

Runs in: API process. A test compares the table with the routes that the application has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from shadow_server.admin import schema

JSON = "application/json"
TEXT = "text/plain"
EVENTS = "text/event-stream"
MULTIPART = "multipart/form-data"

ENGINE_BODY = "engine"
"""Stands for the body that the engine's own route takes."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a success looks like.

    Attributes:
        status: HTTP status.
        meaning: one sentence.
        content: media type to its model; None for a body that is not described further.
    """

    status: int
    meaning: str
    content: tuple[tuple[str, type[BaseModel] | None], ...] = ((JSON, None),)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    Attributes:
        method, path: as in the document; `{name}` may hold a slash.
        summary: one sentence.
        answers: the successes.
        errors: codes of the error table, beside those that every operation has.
        body: media type to its model; `ENGINE_BODY` for what the engine gives.
        is_body_required: a request without a body is refused.
        is_open: needs no key on a server with tenants.
    """

    method: Literal["get", "post", "delete"]
    path: str
    summary: str
    answers: tuple[Answer, ...]
    errors: tuple[str, ...] = ()
    body: tuple[tuple[str, type[BaseModel] | str], ...] = ()
    is_body_required: bool = True
    is_open: bool = False


_BODY = ("invalid_request", "invalid_json", "request_too_large", "unsupported_media_type")
_CATALOG = ("catalog_unavailable",)
_STORE = ("storage_unavailable", *_CATALOG)
_NAMED = ("adapter_not_found", *_CATALOG)
_BAD_ADAPTER = (
    "adapter_invalid",
    "adapter_file_invalid",
    "adapter_config_invalid",
    "adapter_tensor_invalid",
    "adapter_base_mismatch",
    "adapter_over_limit",
)
_SOURCE = (
    "adapter_path_invalid",
    "adapter_path_forbidden",
    "adapter_source_forbidden",
    "adapter_source_unavailable",
    "adapter_not_found",
    "invalid_multipart",
    "request_timeout",
    "sandbox_unavailable",
    "server_overloaded",
)
_LOAD = ("adapter_capacity", "adapter_loading", "adapter_failed", "insufficient_quota", *_STORE)
_PUBLISH = (
    "adapter_name_invalid",
    "adapter_exists",
    "adapter_changed",
    *_BODY,
    *_SOURCE,
    *_BAD_ADAPTER,
    *_LOAD,
)
_GENERATE = (
    *_BODY,
    "adapter_conflict",
    "adapter_not_found",
    "model_not_found",
    "not_found",
    "base_model_forbidden",
    "adapter_loading",
    "adapter_failed",
    "adapter_capacity",
    "rate_limit_exceeded",
    "insufficient_quota",
    "server_overloaded",
    "not_implemented",
)

_CARD = ((JSON, schema.AdapterCard),)
_ONE = Answer(200, "The adapter.", _CARD)
_DONE = Answer(200, "A sentence that vLLM's clients look for.", ((TEXT, None),))
_CONSOLE_FILES = tuple(
    (media_type, None) for media_type in ("text/css", "text/javascript", "image/svg+xml")
)
_OBJECT = Answer(200, "As the engine has it.")


def _probe(path: str, summary: str, *errors: str, answer: Answer = _OBJECT) -> Operation:
    return Operation("get", path, summary, (answer,), errors, is_open=path.startswith("/health/"))


def _generation(path: str, summary: str, *, has_stream: bool) -> Operation:
    content: tuple[tuple[str, None], ...] = ((JSON, None),)
    if has_stream:
        content = (*content, (EVENTS, None))
    answer = Answer(200, "The answer; its headers name the adapter that gave it.", content)
    return Operation("post", path, summary, (answer,), _GENERATE, ((JSON, ENGINE_BODY),))


_ADAPTER = "/v1/adapters/{name}"

OPERATIONS = (
    _generation("/v1/completions", "Complete a prompt.", has_stream=True),
    _generation("/v1/chat/completions", "Answer a conversation.", has_stream=True),
    _generation("/tokenize", "Turn text into tokens.", has_stream=False),
    _generation("/detokenize", "Turn tokens into text.", has_stream=False),
    Operation("get", "/v1/models", "List the base model and the adapters.", (_OBJECT,)),
    Operation("get", "/v1/models/{name}", "Describe one model.", (_OBJECT,), ("model_not_found",)),
    Operation(
        "get",
        "/v1/adapters",
        "List the caller's adapters; an admin sees every tenant's.",
        (Answer(200, "The adapters.", ((JSON, schema.AdapterList),)),),
    ),
    Operation(
        "post",
        "/v1/adapters",
        "Publish an adapter: a new name, or a new version of a known one.",
        (
            Answer(
                200,
                "Nothing changed: the name has these bytes. With `stream` always 200.",
                (*_CARD, (EVENTS, None)),
            ),
            Answer(201, "A new version answers from now on.", _CARD),
            Answer(202, "A new version is registered and is being loaded.", _CARD),
        ),
        _PUBLISH,
        ((JSON, schema.PublishAdapter), (MULTIPART, schema.PublishUpload)),
    ),
    Operation(
        "post",
        "/v1/adapters/validate",
        "Report everything about an adapter's files and change nothing.",
        (Answer(200, "The report, of a bad adapter too.", ((JSON, schema.ValidationCard),)),),
        (*_BODY, *_SOURCE, *_STORE),
        ((JSON, schema.AdapterSource), (MULTIPART, schema.ValidateUpload)),
    ),
    Operation("get", _ADAPTER, "Describe an adapter, or a version (`name@3`).", (_ONE,), _NAMED),
    Operation(
        "delete",
        _ADAPTER,
        "Delete an adapter; requests that use it finish on it.",
        (
            Answer(200, "It has left.", ((JSON, schema.DeletedAdapter),)),
            Answer(202, "Requests still use it; its name is free.", _CARD),
        ),
        _NAMED,
    ),
    Operation(
        "get",
        f"{_ADAPTER}/versions",
        "List an adapter's versions.",
        (Answer(200, "The versions.", ((JSON, schema.VersionList),)),),
        _NAMED,
    ),
    Operation(
        "post",
        f"{_ADAPTER}/rollback",
        "Bind the name to an earlier version's bytes, as a new version.",
        (Answer(200, "It has these bytes already.", _CARD), Answer(201, "A new version.", _CARD)),
        (*_BODY, *_LOAD, *_NAMED),
        ((JSON, schema.Rollback),),
        is_body_required=False,
    ),
    Operation("post", f"{_ADAPTER}/pin", "Keep it resident.", (_ONE,), (*_LOAD, *_NAMED)),
    Operation("post", f"{_ADAPTER}/unpin", "Let it be evicted again.", (_ONE,), _NAMED),
    Operation(
        "post",
        "/v1/load_lora_adapter",
        "Publish an adapter, as vLLM names it.",
        (_DONE,),
        _PUBLISH,
        ((JSON, schema.LoadLoraAdapter),),
    ),
    Operation(
        "post",
        "/v1/unload_lora_adapter",
        "Delete an adapter, as vLLM names it.",
        (_DONE,),
        (*_BODY, *_NAMED),
        ((JSON, schema.UnloadLoraAdapter),),
    ),
    _probe("/health/live", "Whether the process answers."),
    _probe("/health/ready", "Whether requests would be served.", "not_ready"),
    _probe("/health", "vLLM's health check.", "unavailable", answer=Answer(200, "Healthy.", ())),
    _probe("/ping", "The same.", "unavailable", answer=Answer(200, "Healthy.", ())),
    _probe("/version", "The engine's version."),
    _probe("/load", "Requests that the engine has now."),
    _probe("/metrics", "Prometheus series.", answer=Answer(200, "Series.", ((TEXT, None),))),
    Operation(
        "get",
        "/console",
        "The console: adapters, tenants and a playground for people.",
        (Answer(200, "A page.", (("text/html", None),)),),
        is_open=True,
    ),
    Operation(
        "get",
        "/console/{file}",
        "A file that the console is made of.",
        (Answer(200, "The file.", _CONSOLE_FILES),),
        ("not_found",),
        is_open=True,
    ),
    _probe("/openapi.json", "This document."),
    _probe(
        "/docs", "This document for people.", answer=Answer(200, "A page.", (("text/html", None),))
    ),
)
"""The table."""

COMMON_ERRORS = ("method_not_allowed", "internal_error", "unavailable", "server_overloaded")
"""Codes that any operation may answer with."""

KEY_ERRORS = ("invalid_api_key", "admin_required", "forbidden", "rate_limit_exceeded")
"""Codes that any operation that needs a key may answer with."""
