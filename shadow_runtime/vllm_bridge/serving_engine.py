"""vLLM's own application parts behind the server's engine interface.

Runs in: API process.

The routes are an allow-list by construction: vLLM's handlers are called by the routes that the server
adds, and of vLLM's routers only the ones named in `create_app` are attached. So neither /invocations
nor a development, training or pooling route can answer past the adapter rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, ValuesView
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import REGISTRY
from pydantic import TypeAdapter, ValidationError
from starlette.responses import JSONResponse, Response
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.utils.server_utils import lifespan
from vllm.entrypoints.openai.chat_completion import api_router as chat_routes
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion import api_router as completion_routes
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.entrypoints.serve.instrumentator import basic, health
from vllm.entrypoints.serve.instrumentator.metrics import attach_router as attach_metrics
from vllm.entrypoints.serve.middleware.register import init_entrypoints_middleware
from vllm.entrypoints.serve.tokenize import api_router as tokenize_routes
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeRequest
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams

from shadow_runtime import __version__
from shadow_runtime.registry import AdapterEntry, AdapterRegistry
from shadow_runtime.types import RequestTag, SequenceState
from shadow_runtime.vllm_bridge.control import EngineControl
from shadow_runtime.vllm_bridge.engine_args import StartPlan
from shadow_runtime.vllm_bridge.request import adapter_name, build_request
from shadow_runtime.vllm_bridge.request_tag import apply_tag
from shadow_runtime.vllm_bridge.serving_request import (
    PROBE_PREFIX,
    RequestObserver,
    RequestSink,
)
from shadow_runtime.vllm_bridge.serving_trace import observe_traces
from shadow_runtime.vllm_bridge.serving_usage import UsageSink, observe_usage
from shadow_runtime.vllm_bridge.version import installed_version

logger = logging.getLogger(__name__)

_PROBE_WAIT_SECONDS = 1.0
_PROBE_FRESH_SECONDS = 1.0
_DRAIN_POLL_SECONDS = 0.02
_EXIT_SECONDS = 1.0
_ABORT_WAIT_SECONDS = 1.0
_CLIENT_LEFT_STATUS = 499

_COMPLETION: TypeAdapter[Any] = TypeAdapter(CompletionRequest)
_CHAT: TypeAdapter[Any] = TypeAdapter(ChatCompletionRequest)
_TOKENIZE: TypeAdapter[Any] = TypeAdapter(TokenizeRequest)
_DETOKENIZE: TypeAdapter[Any] = TypeAdapter(DetokenizeRequest)


class AdapterRequests(Mapping[str, LoRARequest]):
    """What vLLM's handlers look a request's `model` up in: entry keys, never names.

    The registry is asked at each look-up, so a key works exactly as long as its entry lives, and a
    request that started before a hot replacement still gets the adapter that it leased.
    """

    def __init__(self, adapters: AdapterRegistry) -> None:
        self._adapters = adapters

    def __getitem__(self, key: str) -> LoRARequest:
        entry = self._adapters.find_by_key(key)
        if entry is None:
            raise KeyError(key)
        return build_request(entry.name.display, entry.manifest)

    def __iter__(self) -> Iterator[str]:
        return (entry.key for entry in self._adapters.entries())

    def __len__(self) -> int:
        return len(self._adapters.entries())

    def values(self) -> ValuesView[LoRARequest]:
        """Return nothing: vLLM scans the values for an adapter named as a chat content type.

        A base request with a `text` part would otherwise be answered by an adapter named `text`.
        """
        empty: dict[str, LoRARequest] = {}
        return empty.values()


class VllmEngine:
    """A running vLLM engine as the server's `Engine`.

    Invariant: a request reaches vLLM with the key of a leased entry, or with a name of the base.
    Ownership: the server's event loop.
    """

    def __init__(
        self,
        client: EngineClient,
        args: Namespace,
        plan: StartPlan,
        tasks: tuple[Any, ...],
        adapters: AdapterRegistry,
        control: EngineControl,
    ) -> None:
        """Take over a started engine.

        Args:
            client: the engine.
            args: parsed `serve` command line.
            plan: what was decided before the start.
            tasks: what the engine supports.
            adapters: a registry over `control`, started; its owner closes it.
            control: of this client.
        """
        self._client = client
        self._args = args
        self._tasks = tasks
        self._is_stopping = False
        self._num_requests: Callable[[], int] = lambda: 0
        self._probe: asyncio.Task[None] | None = None
        self._probed_at = 0.0
        self._workers_reason: str | None = "The workers have not answered yet"
        self.plan = plan
        self.control = control
        self.adapters = adapters
        self.base_names = tuple(args.served_model_name or [args.model])
        self.base_root: str = args.model
        self.max_model_len: int = client.model_config.max_model_len
        self._observer = RequestObserver(client.output_processor)  # type: ignore[attr-defined]
        self.is_traced = args.otlp_traces_endpoint is not None
        observe_traces(client.output_processor)  # type: ignore[attr-defined]
        _drop_request_info(client)
        self._watch_shutdown()

    @property
    def versions(self) -> Mapping[str, str]:
        """Return what runs here."""
        return {"version": __version__, "engine_version": installed_version()}

    @property
    def num_adapter_slots(self) -> int:
        """Return the slots over all classes, those for pins included."""
        return self.plan.config.num_slots

    @property
    def max_step_adapters(self) -> int:
        """Return how many distinct adapters one step may mix."""
        return self.plan.config.max_resident_adapters

    @property
    def last_output_at(self) -> float | None:
        """Return when any sequence last got output, by the monotonic clock."""
        return self._observer.last_output_at

    def sequences(self) -> list[SequenceState]:
        """Return what the engine works on now."""
        return self._observer.sequences()

    async def generate_probe(self) -> None:
        """Generate one token of the base model outside of all statistics."""
        if self._is_stopping:
            raise RuntimeError("the server is stopping")
        params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, detokenize=False)
        request_id = f"{PROBE_PREFIX}{uuid.uuid4().hex}"
        prompt = TokensPrompt(prompt_token_ids=[0])
        async for _ in self._client.generate(prompt, params, request_id):
            pass

    def create_app(self) -> FastAPI:
        """Return an application with vLLM's lifespan, middleware, error handlers and /metrics."""
        app = FastAPI(lifespan=lifespan, openapi_url=None)
        app.state.args = self._args
        app.root_path = self._args.root_path or ""
        attach_metrics(app)
        app.add_api_route("/health", health.health, response_class=Response)
        app.add_api_route("/ping", health.health, methods=["GET", "POST"], response_class=Response)
        app.add_api_route("/version", basic.show_version)
        app.add_api_route("/load", basic.get_server_load_metrics)
        init_exception_handler(app)
        init_entrypoints_middleware(self._args, app, self._tasks)
        return app

    async def bind(self, app: FastAPI) -> None:
        """Give `app` vLLM's state and make its handlers look adapters up in the registry."""
        await init_app_state(self._client, app.state, self._args, self._tasks)
        models = app.state.openai_serving_models
        models.lora_requests = AdapterRequests(self.adapters)
        base_name = models.model_name
        models.model_name = lambda lora=None: base_name() if lora is None else adapter_name(lora)

    def observe_requests(self, sink: RequestSink) -> None:
        """Tell `sink` of every sequence from now on."""
        self._observer.sink = sink

    def observe_usage(self, sink: UsageSink) -> None:
        """Report every ended sequence to `sink` from now on, under its request's tag."""
        observe_usage(self._client.output_processor, sink)  # type: ignore[attr-defined]

    def request_schemas(self) -> dict[str, dict[str, Any]]:
        """Return path to JSON schema of the request bodies that vLLM's handlers take."""
        bodies = {
            "/v1/completions": _COMPLETION,
            "/v1/chat/completions": _CHAT,
            "/tokenize": _TOKENIZE,
            "/detokenize": _DETOKENIZE,
        }
        return {path: fields.json_schema() for path, fields in bodies.items()}

    def drain_with(self, num_requests: Callable[[], int]) -> None:
        """Stop the engine only when `num_requests` returns 0, or the time that it was given is up."""
        self._num_requests = num_requests

    async def find_unready_reason(self) -> str | None:
        """Return why requests would not be served now, None when they would."""
        if self._is_stopping:
            return "The server is stopping"
        if self._client.errored:
            return "The engine has stopped"
        now = time.monotonic()
        is_stale = now - self._probed_at > _PROBE_FRESH_SECONDS
        if self._probe is None or (self._probe.done() and is_stale):
            self._probed_at = now
            self._probe = asyncio.create_task(self._probe_workers())
        # Not cancelled when late, and no fault by itself: workers answer between steps, and a step may take long. One
        # that does not end is seen in what is generated.
        left_seconds = self._probed_at + _PROBE_WAIT_SECONDS - now
        await asyncio.wait({self._probe}, timeout=max(0.0, left_seconds))
        return self._workers_reason

    async def complete(
        self, body: dict[str, Any], request: Request, adapter: AdapterEntry | None, tag: RequestTag
    ) -> Response:
        """Answer with vLLM's completion handler."""
        asked = self._parse(_COMPLETION, body, adapter)
        apply_tag(asked, tag)
        return await self._answer(completion_routes.create_completion, asked, request)

    async def chat(
        self, body: dict[str, Any], request: Request, adapter: AdapterEntry | None, tag: RequestTag
    ) -> Response:
        """Answer with vLLM's chat handler."""
        asked = self._parse(_CHAT, body, adapter)
        apply_tag(asked, tag)
        return await self._answer(chat_routes.create_chat_completion, asked, request)

    async def tokenize(
        self, body: dict[str, Any], request: Request, adapter: AdapterEntry | None, tag: RequestTag
    ) -> Response:
        """Answer with vLLM's tokenizer handler; the tag has no use there."""
        asked = self._parse(_TOKENIZE, body, adapter)
        return await self._answer(tokenize_routes.tokenize, asked, request)

    async def detokenize(
        self, body: dict[str, Any], request: Request, adapter: AdapterEntry | None, tag: RequestTag
    ) -> Response:
        """Answer with vLLM's detokenizer handler; the tag has no use there."""
        asked = self._parse(_DETOKENIZE, body, adapter)
        return await self._answer(tokenize_routes.detokenize, asked, request)

    def _parse(
        self, fields: TypeAdapter[Any], body: dict[str, Any], adapter: AdapterEntry | None
    ) -> Any:
        if adapter is not None:
            body["model"] = adapter.key
        elif body.get("model") is None:
            body["model"] = self.base_names[0]
        elif body["model"] not in self.base_names:
            # The caller resolved the name; anything else here would be a wrong answer.
            raise ValueError("the request names neither a leased adapter nor the base model")
        try:
            return fields.validate_python(body)
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None
        except (AttributeError, IndexError, KeyError, TypeError):
            # vLLM's own validators look into fields before anybody has looked at their type.
            problem = {
                "type": "value_error",
                "loc": ("body",),
                "msg": "a field has a value of the wrong type",
            }
            raise RequestValidationError([problem]) from None

    async def _answer(self, handler: Any, asked: Any, request: Request) -> Response:
        if self._is_stopping:
            return _stopping()
        # vLLM's handlers return None when the client left first.
        answer = await handler(asked, request)
        return answer if answer is not None else Response(status_code=_CLIENT_LEFT_STATUS)

    async def _probe_workers(self) -> None:
        self._workers_reason = await self._find_workers_reason()

    async def _find_workers_reason(self) -> str | None:
        try:
            workers = await self.control.worker_status()
        except Exception as error:
            return f"The workers could not be asked: {type(error).__name__}"
        expected = self.control.num_engines * self._client.vllm_config.parallel_config.world_size
        if len(workers) < expected:
            return f"{len(workers)} of {expected} workers answered"
        inactive = sum(not worker["active"] for worker in workers)
        return f"{inactive} workers do not run the plugin" if inactive else None

    def _watch_shutdown(self) -> None:
        # vLLM's launcher shuts the engine down first, in a thread of its own; from then on requests
        # are refused and the readiness probe is red, so that a load balancer looks elsewhere. vLLM's
        # own drain knows only what the engine has, and a request that was let in before may reach it
        # later: so the requests themselves are waited for. What is left then would end as a failure of
        # the engine, whose processes are stopped, or get no more output, and the HTTP server would
        # wait for it for ever: it is ended as aborted, first, and what came in meanwhile behind it.
        shutdown = self._client.shutdown
        loop, loop_thread = asyncio.get_running_loop(), threading.get_ident()

        def stop(timeout: float | None = None) -> None:
            self._is_stopping = True
            # Without a time the server is gone already. Within the loop, where vLLM calls once more at its very end,
            # nothing that is waited for could happen.
            if timeout is not None and threading.get_ident() != loop_thread:
                timeout = self._drain(timeout)
                self._wait_for_abort(loop)
            shutdown(timeout=timeout)
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
                loop.call_soon_threadsafe(self._end_unfinished)

        self._client.shutdown = partial(stop)  # type: ignore[method-assign]

    def _drain(self, timeout: float) -> float:
        """Wait until all requests have ended; returns how much of `timeout` is left for the engine's processes."""
        stop_at = time.monotonic() + timeout
        while self._num_requests() > 0 and time.monotonic() < stop_at:
            time.sleep(_DRAIN_POLL_SECONDS)
        return max(_EXIT_SECONDS, stop_at - time.monotonic())

    def _wait_for_abort(self, loop: asyncio.AbstractEventLoop) -> None:
        """Abort all requests, in the engine too, so that it has no work when it is told to stop.

        Blocks: never called within the loop.
        """
        if not loop.is_running():
            return  # nobody waits
        aborted = asyncio.run_coroutine_threadsafe(self._abort_unfinished(), loop)
        try:
            aborted.result(_ABORT_WAIT_SECONDS)
        except Exception:  # the engine is stopped all the same
            logger.exception("requests could not be aborted before the engine stops")

    async def _abort_unfinished(self) -> None:
        processor: Any = self._client.output_processor  # type: ignore[attr-defined]
        await self._client.abort(list(processor.request_states), internal=True)  # type: ignore[call-arg]

    def _end_unfinished(self) -> None:
        processor: Any = self._client.output_processor  # type: ignore[attr-defined]
        processor.abort_requests(list(processor.request_states), internal=True)


def _drop_request_info(client: Any) -> None:
    """Take vLLM's `vllm:lora_requests_info` off /metrics; the server shows one of the same name and labels.

    vLLM's has a sample for every combination of adapters that ever ran together, without bound, lists every adapter as
    running and as waiting alike, and has their digests for names, which no router's request does. Can go once it is
    bounded.
    """
    manager = getattr(client, "logger_manager", None)
    for stat_logger in getattr(manager, "stat_loggers", ()):
        gauge = getattr(stat_logger, "gauge_lora_info", None)
        if gauge is not None:
            REGISTRY.unregister(gauge)
            stat_logger.gauge_lora_info = None


def _stopping() -> JSONResponse:
    error = {
        "message": "The server is stopping",
        "type": "service_unavailable_error",
        "param": None,
        "code": "server_stopping",
    }
    return JSONResponse({"error": error}, 503, {"retry-after": "1"})
