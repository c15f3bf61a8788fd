"""One request of the API as a value: what is sent, whether it may be sent twice, and what its answer means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from shadow_client.adapter import Adapter, AdapterVersion, Deletion, Hub, Model, Validation
from shadow_client.generation import ChatCompletion, Completion, Message, Prompt, request_body
from shadow_client.info import ResponseInfo
from shadow_client.retry import Safety
from shadow_client.upload import Files, MultipartUpload, OnProgress, find_file, find_files
from shadow_client.value import decode

ResultT = TypeVar("ResultT")
ChunkT = TypeVar("ChunkT", bound=Completion | ChatCompletion)
ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class Call(Generic[ResultT]):
    """See the module.

    Attributes:
        method, path: of the request; the path is quoted.
        read: makes the result from the parsed JSON answer and its headers.
        safety: what sending it twice may do.
        json: body, None for none.
        upload: body in place of `json`.
        timeout_seconds: between two signs of life of the server; None for the client's own.
        is_sent_once: its refusal is an answer, too, and no reason to ask again.
    """

    method: str
    path: str
    read: Callable[[Any, ResponseInfo], ResultT]
    safety: Safety
    json: Mapping[str, Any] | None = None
    upload: MultipartUpload | None = None
    timeout_seconds: float | None = None
    is_sent_once: bool = False


def completion(
    prompt: Prompt, adapter: str | None, options: Mapping[str, Any], *, stream: bool = False
) -> Call[Completion]:
    """POST /v1/completions."""
    fields = {"prompt": prompt} | _stream_fields(stream)
    return _generation("/v1/completions", Completion, request_body(options, adapter, fields))


def chat(
    messages: list[Message],
    adapter: str | None,
    options: Mapping[str, Any],
    *,
    stream: bool = False,
) -> Call[ChatCompletion]:
    """POST /v1/chat/completions."""
    fields = {"messages": messages} | _stream_fields(stream)
    body = request_body(options, adapter, fields)
    return _generation("/v1/chat/completions", ChatCompletion, body)


def _stream_fields(stream: bool) -> dict[str, Any]:
    return {"stream": True, "stream_options": {"include_usage": True}} if stream else {}


def _generation(path: str, cls: type[ChunkT], body: Mapping[str, Any]) -> Call[ChunkT]:
    def read(data: Any, info: ResponseInfo) -> ChunkT:
        return replace(decode(cls, data), info=info)

    return Call("POST", path, read, Safety.REPEATABLE, json=body)


def models() -> Call[tuple[Model, ...]]:
    """GET /v1/models."""
    return Call("GET", "/v1/models", _list_of(Model), Safety.READ)


def adapters() -> Call[tuple[Adapter, ...]]:
    """GET /v1/adapters."""
    return Call("GET", "/v1/adapters", _list_of(Adapter), Safety.READ)


def adapter(name: str) -> Call[Adapter]:
    """GET /v1/adapters/NAME."""
    return Call("GET", adapter_path(name), _one_of(Adapter), Safety.READ)


def versions(name: str) -> Call[tuple[AdapterVersion, ...]]:
    """GET /v1/adapters/NAME/versions."""
    path = f"{adapter_path(name)}/versions"
    return Call("GET", path, _list_of(AdapterVersion), Safety.READ)


def publish(
    name: str,
    source: Path | str | Hub,
    *,
    backbone_config: str | None,
    can_replace: bool,
    wait: bool,
    stream: bool,
    timeout_seconds: float | None,
) -> Call[Adapter]:
    """POST /v1/adapters, of what the server reaches itself."""
    fields = {"name": name, "can_replace": can_replace, "wait": wait, "stream": stream}
    return Call(
        "POST",
        "/v1/adapters",
        _one_of(Adapter),
        Safety.REPEATABLE,
        json=fields | _source_fields(source, backbone_config),
        timeout_seconds=timeout_seconds,
    )


def upload(
    name: str,
    files: Files,
    *,
    backbone_config: Path | str | None,
    can_replace: bool,
    wait: bool,
    on_progress: OnProgress | None,
    timeout_seconds: float | None,
) -> Call[Adapter]:
    """POST /v1/adapters, with the files; streams when somebody looks."""
    flags = {"can_replace": can_replace, "wait": wait, "stream": on_progress is not None}
    fields = {"name": name} | {flag: str(value).lower() for flag, value in flags.items()}
    return Call(
        "POST",
        "/v1/adapters",
        _one_of(Adapter),
        Safety.REPEATABLE,
        upload=_body(fields, files, backbone_config, on_progress),
        timeout_seconds=timeout_seconds,
    )


def validate(
    source: Path | str | Hub, *, backbone_config: str | None, timeout_seconds: float | None
) -> Call[Validation]:
    """POST /v1/adapters/validate, of what the server reaches itself."""
    body = _source_fields(source, backbone_config)
    return _validation(timeout_seconds, json=body)


def validate_upload(
    files: Files,
    *,
    backbone_config: Path | str | None,
    on_progress: OnProgress | None,
    timeout_seconds: float | None,
) -> Call[Validation]:
    """POST /v1/adapters/validate, with the files."""
    body = _body({}, files, backbone_config, on_progress)
    return _validation(timeout_seconds, upload=body)


def _validation(
    timeout_seconds: float | None,
    json: Mapping[str, Any] | None = None,
    upload: MultipartUpload | None = None,
) -> Call[Validation]:
    return Call(
        "POST",
        "/v1/adapters/validate",
        _one_of(Validation),
        Safety.REPEATABLE,
        json=json,
        upload=upload,
        timeout_seconds=timeout_seconds,
    )


def _body(
    fields: Mapping[str, str],
    files: Files,
    backbone_config: Path | str | None,
    on_progress: OnProgress | None,
) -> MultipartUpload:
    config = None if backbone_config is None else find_file(backbone_config)
    return MultipartUpload(fields, find_files(files), on_progress, config)


def _source_fields(source: Path | str | Hub, backbone_config: str | None) -> dict[str, Any]:
    config = {} if backbone_config is None else {"backbone_config": backbone_config}
    if isinstance(source, Hub):
        return {"hub": {"repo": source.repo, "revision": source.revision}} | config
    return {"path": str(source)} | config


def rollback(name: str, version: int | None, timeout_seconds: float | None) -> Call[Adapter]:
    """POST /v1/adapters/NAME/rollback; to a version it ends in the same state twice, without one it does not."""
    body = {} if version is None else {"version": version}
    safety = Safety.ONCE if version is None else Safety.REPEATABLE
    return _change(name, "rollback", safety, timeout_seconds, body)


def pin(name: str, timeout_seconds: float | None) -> Call[Adapter]:
    """POST /v1/adapters/NAME/pin."""
    return _change(name, "pin", Safety.REPEATABLE, timeout_seconds)


def unpin(name: str) -> Call[Adapter]:
    """POST /v1/adapters/NAME/unpin."""
    return _change(name, "unpin", Safety.REPEATABLE, None)


def _change(
    name: str,
    verb: str,
    safety: Safety,
    timeout_seconds: float | None,
    body: Mapping[str, Any] | None = None,
) -> Call[Adapter]:
    path, read = f"{adapter_path(name)}/{verb}", _one_of(Adapter)
    return Call("POST", path, read, safety, json=body, timeout_seconds=timeout_seconds)


def delete(name: str) -> Call[Deletion]:
    """DELETE /v1/adapters/NAME; a second one would find nothing, or somebody else's new adapter."""

    def read(data: Any, _: ResponseInfo) -> Deletion:
        return Deletion(name, str(data.get("digest")), is_gone=data.get("deleted") is True)

    return Call("DELETE", adapter_path(name), read, Safety.ONCE)


def version() -> Call[str]:
    """GET /version: the engine's."""
    return Call("GET", "/version", lambda data, _: str(data["version"]), Safety.READ)


def adapter_path(name: str) -> str:
    """Return the path of an adapter.

    Raises:
        ValueError: it can be no adapter's name, and would be another route.
    """
    parts = name.split("/")
    if not name.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{name!r} is no adapter's name")
    return f"/v1/adapters/{quote(name, safe='/@')}"


def _one_of(cls: type[ItemT]) -> Callable[[Any, ResponseInfo], ItemT]:
    return lambda data, _: decode(cls, data)


def _list_of(cls: type[ItemT]) -> Callable[[Any, ResponseInfo], tuple[ItemT, ...]]:
    return lambda data, _: tuple(decode(cls, item) for item in data["data"])
