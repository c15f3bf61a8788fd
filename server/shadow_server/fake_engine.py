"""A deterministic engine without a model: what the server's tests and a laptop without vLLM run on.

Runs in: API process. Imports neither torch nor vllm.

An answer tells who gave it: `[adapter] prompt`, or `[base] prompt`, one word a token. An adapter is any
directory with a file named `adapter.txt`; its bytes are its identity, and the word `broken` in it
makes the adapter invalid.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry, make_asgi_app
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount

from shadow_server.engine import (
    AdapterEntry,
    AdapterRegistry,
    ArtifactStore,
    Catalog,
    RegistrySettings,
    RequestOrigin,
    RequestSink,
    RequestTag,
    SequenceState,
    UsageSink,
    runtime_version,
)
from shadow_server.fake_adapter import ADAPTER_FILE, BASE_FINGERPRINT, FakeLoader, FakeValidator

ModelT = TypeVar("ModelT", bound=BaseModel)

BASE_NAME = "fake-base"
MAX_MODEL_LEN = 128


class _StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool = False


class _Completion(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int = 16
    echo: bool = False
    stream: bool = False
    stream_options: _StreamOptions | None = None


class _Message(BaseModel):
    model_config = ConfigDict(strict=True)

    role: Literal["system", "user", "assistant"]
    content: str


class _Chat(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    messages: list[_Message] = Field(min_length=1)
    max_tokens: int = 16
    stream: bool = False
    stream_options: _StreamOptions | None = None


class _Tokenize(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    prompt: str


class _Detokenize(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    tokens: list[int]


class FakeEngine:
    """See `Engine`. Made by `open`; tests steer it.

    Attributes:
        loader: what holds the adapters; has a gate and a failure of its own.
        catalog: the database below the registry.
        gate: holds every answer back until it is set; None lets them through.
        unready_reason: what the engine reports of itself.
        num_aborted: answers that were cancelled at the gate.
        tags: the tag of every request, in the order of their arrival.
        last_output_at, is_traced: see `Engine`.
        stall: holds every probe back until it is set; None lets them through.
        num_probes: probes that were asked for.
        running: what `sequences` returns.
        registry: what /metrics shows.
    """

    def __init__(
        self,
        loader: FakeLoader,
        catalog: Catalog,
        adapters: AdapterRegistry,
        registry: CollectorRegistry,
    ) -> None:
        self.loader = loader
        self.catalog = catalog
        self.adapters = adapters
        self.base_names: tuple[str, ...] = (BASE_NAME,)
        self.base_root = "/models/fake-base"
        self.max_model_len = MAX_MODEL_LEN
        self.unready_reason: str | None = None
        self.gate: asyncio.Event | None = None
        self.num_aborted = 0
        self.tags: list[RequestTag] = []
        self.registry = registry
        self.is_traced = False
        self.last_output_at: float | None = None
        self.stall: asyncio.Event | None = None
        self.num_probes = 0
        self.running: list[SequenceState] = []
        self._sink: RequestSink | None = None
        self._usage: UsageSink | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        directory: Path,
        registry: CollectorRegistry | None = None,
        settings: RegistrySettings | None = None,
        *,
        loader: FakeLoader | None = None,
    ) -> AsyncIterator[FakeEngine]:
        """Run an engine over a real registry, catalog and store in `directory`, which may hold earlier ones.

        Args:
            directory: of the database and the store.
            registry: where /metrics reads.
            settings: of the adapter registry.
            loader: to give it other slots than the usual ones.
        """
        loader = loader or FakeLoader()
        store = ArtifactStore(  # makes the directory
            directory / "store", file_names={ADAPTER_FILE}
        )
        catalog = Catalog.open(f"sqlite:///{directory / 'registry.db'}", BASE_FINGERPRINT)
        adapters = AdapterRegistry(
            loader, catalog, store, FakeValidator(), settings or RegistrySettings()
        )
        await adapters.start()
        try:
            yield cls(loader, catalog, adapters, registry or CollectorRegistry())
        finally:
            await adapters.close()

    def create_app(self) -> FastAPI:
        """See `Engine`."""
        app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
        for path in ("/health", "/ping"):
            app.add_api_route(path, lambda: PlainTextResponse(""), response_model=None)
        app.add_api_route("/version", lambda: {"version": "fake"})
        app.add_api_route("/load", lambda: {"server_load": 0})
        metrics = Mount("/metrics", make_asgi_app(self.registry))
        metrics.path_regex = re.compile("^/metrics(?P<path>.*)$")  # without it /metrics redirects
        app.router.routes.append(metrics)
        return app

    @property
    def versions(self) -> Mapping[str, str]:
        """See `Engine`."""
        return {"version": runtime_version, "engine_version": "fake"}

    @property
    def num_adapter_slots(self) -> int:
        """See `Engine`."""
        return self.loader.num_slots

    @property
    def max_step_adapters(self) -> int:
        """See `Engine`."""
        return self.loader.num_slots - self.loader.max_pins

    def sequences(self) -> list[SequenceState]:
        """See `Engine`."""
        return list(self.running)

    async def generate_probe(self) -> None:
        """See `Engine`."""
        self.num_probes += 1
        if self.stall is not None:
            await self.stall.wait()
        self.last_output_at = time.monotonic()

    def observe_requests(self, sink: RequestSink) -> None:
        """See `Engine`."""
        self._sink = sink

    def observe_usage(self, sink: UsageSink) -> None:
        """See `Engine`."""
        self._usage = sink

    def drain_with(self, num_requests: Callable[[], int]) -> None:
        """See `Engine`; this one stops at once."""

    @staticmethod
    def request_schemas() -> Mapping[str, dict[str, Any]]:
        """See `Engine`."""
        models: dict[str, type[BaseModel]] = {
            "/v1/completions": _Completion,
            "/v1/chat/completions": _Chat,
            "/tokenize": _Tokenize,
            "/detokenize": _Detokenize,
        }
        return {path: model.model_json_schema() for path, model in models.items()}

    async def find_unready_reason(self) -> str | None:
        """See `Engine`."""
        return self.unready_reason

    async def complete(
        self, body: dict[str, Any], request: Request, adapter: AdapterEntry | None, tag: RequestTag
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
                self._stream(answers, asked, adapter, tag), media_type="text/event-stream"
            )
        with self._counted(tag, answers):
            await self._run(adapter, tag)
        choices = [
            {"index": i, "text": " ".join(words), "finish_reason": "length", "logprobs": None}
            for i, words in enumerate(answers)
        ]
        return JSONResponse(_completion(adapter, choices) | {"usage": _usage(answers)})

    async def chat(
        self, body: dict[str, Any], request: Request, adapter: AdapterEntry | None, tag: RequestTag
    ) -> Response:
        """See `Engine`."""
        asked = _validate(_Chat, body)
        text = f"[{_label(adapter)}] {asked.messages[-1].content}"
        if asked.stream:
            return StreamingResponse(
                self._stream([text.split()], asked, adapter, tag), media_type="text/event-stream"
            )
        with self._counted(tag, [text.split()]):
            await self._run(adapter, tag)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }
        content = _completion(adapter, [choice]) | {"object": "chat.completion"}
        return JSONResponse(content | {"usage": _usage([text.split()])})

    async def tokenize(
        self, body: dict[str, Any], request: Request, adapter: AdapterEntry | None, tag: RequestTag
    ) -> Response:
        """See `Engine`."""
        tokens = [len(word) for word in _validate(_Tokenize, body).prompt.split()]
        return JSONResponse({"tokens": tokens, "count": len(tokens)})

    async def detokenize(
        self, body: dict[str, Any], request: Request, adapter: AdapterEntry | None, tag: RequestTag
    ) -> Response:
        """See `Engine`."""
        tokens = _validate(_Detokenize, body).tokens
        return JSONResponse({"prompt": " ".join(f"t{token}" for token in tokens)})

    def _answer(self, prompt: str, asked: _Completion, adapter: AdapterEntry | None) -> list[str]:
        words = [f"[{_label(adapter)}]", *prompt.split()][: asked.max_tokens]
        return [*prompt.split(), *words] if asked.echo else words

    @contextmanager
    def _counted(self, tag: RequestTag, answers: list[list[str]]) -> Iterator[None]:
        self.tags.append(tag)
        try:
            yield
        finally:
            if self._usage is not None:
                for words in answers:
                    self._usage.observe_usage(tag.tag, 1, len(words))

    async def _run(self, adapter: AdapterEntry | None, tag: RequestTag) -> None:
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.num_aborted += 1
                raise
        if adapter is not None:
            self.loader.use(adapter.digest)
        self.last_output_at = time.monotonic()
        if self._sink is not None:
            name = None if adapter is None else adapter.name.display
            origin = RequestOrigin(name, tag.tenant)
            self._sink.observe_first_token(origin, 0.02, 0.01)
            self._sink.observe_tokens(origin, 3, 1)
            self._sink.observe_inter_token(origin, 0.002)
            self._sink.observe_tokens(origin, 0, 1)
            self._sink.observe_finished(origin, 0.5)

    async def _stream(
        self,
        answers: list[list[str]],
        asked: _Completion | _Chat,
        adapter: AdapterEntry | None,
        tag: RequestTag,
    ) -> AsyncIterator[str]:
        is_chat = isinstance(asked, _Chat)
        with self._counted(tag, answers):
            for index, words in enumerate(answers):
                for word in words:
                    text = f"{word} "
                    said = {"delta": {"content": text}} if is_chat else {"text": text}
                    choice = {"index": index, "finish_reason": None, **said}
                    yield _event(_completion(adapter, [choice]))
                    await self._run(adapter, tag)
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
    return "base" if adapter is None else f"{adapter.name.display}:{adapter.digest[-4:]}"


def _completion(adapter: AdapterEntry | None, choices: list[dict[str, Any]]) -> dict[str, Any]:
    model = BASE_NAME if adapter is None else adapter.name.display
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
