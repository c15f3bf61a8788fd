"""A deterministic engine without a model: what the server's tests and a laptop without vLLM run on.

Runs in: API process. Imports neither torch nor vllm.

An answer tells who gave it: `[adapter] prompt`, or `[base] prompt`, one word a token. An adapter is any
directory with a file named `adapter.txt`; its bytes are its identity, and the word `broken` in it
makes the adapter invalid.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry, make_asgi_app
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from shadow_server.engine import (
    AdapterEntry,
    AdapterHandle,
    AdapterManifest,
    AdapterRegistry,
    BackboneSpec,
    LatencySink,
    runtime_errors,
)

ModelT = TypeVar("ModelT", bound=BaseModel)

BASE_NAME = "fake-base"
MAX_MODEL_LEN = 128


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _Completion(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str | None = None
    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int = 16
    echo: bool = False
    stream: bool = False
    stream_options: _StreamOptions | None = None


class _Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class _Chat(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str | None = None
    messages: list[_Message]
    max_tokens: int = 16
    stream: bool = False


class _Tokenize(BaseModel):
    model_config = ConfigDict(extra="allow")

    prompt: str


class _Detokenize(BaseModel):
    model_config = ConfigDict(extra="allow")

    tokens: list[int]


@dataclass(frozen=True, slots=True)
class FakeHandle:
    """A loaded adapter of the fake engine."""

    name: str
    manifest: AdapterManifest


class FakeLoader:
    """Reads fake adapters; `held` counts what an engine would hold, by digest."""

    def __init__(self) -> None:
        self.held: set[str] = set()

    async def load(self, name: str, path: str, backbone_config: str | None = None) -> FakeHandle:
        """See `AdapterLoader`."""
        file = Path(path) / "adapter.txt"
        if not file.is_file():
            raise runtime_errors.AdapterFileError(f"{path} holds no adapter.txt")
        data = file.read_bytes()
        if b"broken" in data:
            raise runtime_errors.AdapterTensorError(f"{file} holds NaN at 0x7f00deadbeef")
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.held.add(digest)
        return FakeHandle(name, _manifest(digest, path, backbone_config))

    async def unload(self, handle: AdapterHandle) -> None:
        """See `AdapterLoader`."""
        self.held.discard(handle.manifest.digest)


class FakeEngine:
    """See `Engine`. Tests steer it: `gate` holds every answer back, `unready_reason` is what it reports."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.loader = FakeLoader()
        self.base_names: tuple[str, ...] = (BASE_NAME,)
        self.base_root = "/models/fake-base"
        self.max_model_len = MAX_MODEL_LEN
        self.adapters = AdapterRegistry(self.loader)
        self.unready_reason: str | None = None
        self.gate: asyncio.Event | None = None
        self.num_aborted = 0
        self._registry = registry or CollectorRegistry()
        self._sink: LatencySink | None = None

    def create_app(self) -> FastAPI:
        """See `Engine`."""
        app = FastAPI(openapi_url=None)
        for path in ("/health", "/ping"):
            app.add_api_route(path, lambda: PlainTextResponse(""), response_model=None)
        app.add_api_route("/version", lambda: {"version": "fake"})
        app.add_api_route("/load", lambda: {"server_load": 0})
        app.mount("/metrics", make_asgi_app(self._registry))
        return app

    def observe_latency(self, sink: LatencySink) -> None:
        """See `Engine`."""
        self._sink = sink

    async def find_unready_reason(self) -> str | None:
        """See `Engine`."""
        return self.unready_reason

    async def complete(
        self, body: dict[str, Any], request: Request, adapter: AdapterEntry | None
    ) -> Response:
        """See `Engine`."""
        asked = _validate(_Completion, body)
        if asked.max_tokens > MAX_MODEL_LEN:
            # vLLM's shape on purpose: an integer code and its own type.
            error = {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}
            return JSONResponse({"error": error}, 400)
        answers = [self._answer(p, asked, adapter) for p in _prompts(asked.prompt)]
        if asked.stream:
            return StreamingResponse(
                self._stream(answers, asked, adapter), media_type="text/event-stream"
            )
        await self._run(adapter)
        choices = [
            {"index": i, "text": " ".join(words), "finish_reason": "length", "logprobs": None}
            for i, words in enumerate(answers)
        ]
        return JSONResponse(_completion(adapter, choices) | {"usage": _usage(answers)})

    async def chat(
        self, body: dict[str, Any], request: Request, adapter: AdapterEntry | None
    ) -> Response:
        """See `Engine`."""
        asked = _validate(_Chat, body)
        await self._run(adapter)
        text = f"[{_label(adapter)}] {asked.messages[-1].content}"
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }
        content = _completion(adapter, [choice]) | {"object": "chat.completion"}
        return JSONResponse(content | {"usage": _usage([text.split()])})

    async def tokenize(
        self, body: dict[str, Any], request: Request, adapter: AdapterEntry | None
    ) -> Response:
        """See `Engine`."""
        tokens = [len(word) for word in _validate(_Tokenize, body).prompt.split()]
        return JSONResponse({"tokens": tokens, "count": len(tokens)})

    async def detokenize(
        self, body: dict[str, Any], request: Request, adapter: AdapterEntry | None
    ) -> Response:
        """See `Engine`."""
        tokens = _validate(_Detokenize, body).tokens
        return JSONResponse({"prompt": " ".join(f"t{token}" for token in tokens)})

    def _answer(self, prompt: str, asked: _Completion, adapter: AdapterEntry | None) -> list[str]:
        words = [f"[{_label(adapter)}]", *prompt.split()][: asked.max_tokens]
        return [*prompt.split(), *words] if asked.echo else words

    async def _run(self, adapter: AdapterEntry | None) -> None:
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.num_aborted += 1
                raise
        if self._sink is not None:
            name = None if adapter is None else adapter.name
            self._sink.observe_first_token(name, 0.02)
            self._sink.observe_inter_token(name, 0.002)
            self._sink.observe_finished(name, 0.5)

    async def _stream(
        self, answers: list[list[str]], asked: _Completion, adapter: AdapterEntry | None
    ) -> AsyncIterator[str]:
        for index, words in enumerate(answers):
            for word in words:
                choice = {"index": index, "text": f"{word} ", "finish_reason": None}
                yield _event(_completion(adapter, [choice]))
                await self._run(adapter)
                if word == "fail":
                    error = {"message": "boom", "type": "InternalServerError", "code": 500}
                    yield _event({"error": error})
        if asked.stream_options is not None and asked.stream_options.include_usage:
            yield _event(_completion(adapter, []) | {"usage": _usage(answers)})
        yield "data: [DONE]\n\n"


def _validate(model: type[ModelT], body: dict[str, Any]) -> ModelT:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str]:
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(part, int) for part in prompt):
        return [" ".join(f"t{token}" for token in prompt)]
    return [part if isinstance(part, str) else _prompts(part)[0] for part in prompt]  # type: ignore[arg-type]


def _label(adapter: AdapterEntry | None) -> str:
    return "base" if adapter is None else f"{adapter.name}:{adapter.digest[-4:]}"


def _completion(adapter: AdapterEntry | None, choices: list[dict[str, Any]]) -> dict[str, Any]:
    model = BASE_NAME if adapter is None else adapter.name
    return {
        "id": "cmpl-fake",
        "object": "text_completion",
        "created": 0,
        "model": model,
        "choices": choices,
    }


def _usage(answers: list[list[str]]) -> dict[str, int]:
    num_tokens = sum(len(words) for words in answers)
    return {"prompt_tokens": 1, "completion_tokens": num_tokens, "total_tokens": num_tokens + 1}


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _manifest(digest: str, path: str, backbone_config: str | None) -> AdapterManifest:
    zeros = {field.name: 0 for field in dataclasses.fields(BackboneSpec)}
    return AdapterManifest(
        digest=digest,
        format="paper",
        path=path,
        backbone_config=backbone_config,
        injection_rank=16,
        gate_size=10,
        scale=0.1,
        activation="silu",
        has_norm=True,
        has_update_bias=False,
        injects=(False, True),
        updates=(False, False),
        backbone=BackboneSpec(**zeros),  # type: ignore[arg-type]
        num_parameters=0,
        tensor_bytes=0,
    )
