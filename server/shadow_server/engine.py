"""What the server asks of an engine, and the only module that imports shadow_runtime.

Runs in: API process. vLLM is imported when the real engine is served, not before.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from fastapi import FastAPI, Request
from starlette.responses import Response

from shadow_runtime import __version__ as runtime_version
from shadow_runtime import errors as runtime_errors
from shadow_runtime.catalog import (
    AdapterRecord,
    ArtifactRecord,
    Catalog,
    CatalogQuota,
    CatalogUsage,
    VersionRecord,
)
from shadow_runtime.registry import (
    AdapterEntry,
    AdapterLoader,
    AdapterRegistry,
    AdapterState,
    EvictReason,
    Lease,
    Level,
    LoadSource,
    Progress,
    PublishOutcome,
    RegistryEvents,
    RegistrySettings,
    Validator,
    is_adapter_name,
    is_tenant_name,
    parse_adapter,
)
from shadow_runtime.store import (
    ArtifactStore,
    CanonicalTarget,
    HubSource,
    StagedArtifact,
    UploadSession,
)
from shadow_runtime.types import (
    DEFAULT_TENANT,
    AdapterManifest,
    AdapterName,
    BackboneSpec,
    RequestOrigin,
    RequestTag,
    SequenceState,
    TensorReport,
    ValidationReport,
)

__all__ = [
    "DEFAULT_TENANT",
    "AdapterEntry",
    "AdapterLoader",
    "AdapterManifest",
    "AdapterName",
    "AdapterRecord",
    "AdapterRegistry",
    "AdapterState",
    "ArtifactRecord",
    "ArtifactStore",
    "BackboneSpec",
    "CanonicalTarget",
    "Catalog",
    "CatalogQuota",
    "CatalogUsage",
    "Engine",
    "EvictReason",
    "HubSource",
    "Lease",
    "Level",
    "LoadSource",
    "Progress",
    "PublishOutcome",
    "RegistryEvents",
    "RegistrySettings",
    "RequestOrigin",
    "RequestSink",
    "RequestTag",
    "SequenceState",
    "StagedArtifact",
    "TensorReport",
    "UploadSession",
    "UsageSink",
    "ValidationReport",
    "Validator",
    "VersionRecord",
    "is_adapter_name",
    "is_tenant_name",
    "parse_adapter",
    "run_engine_server",
    "runtime_errors",
    "runtime_version",
]


class RequestSink(Protocol):
    """Takes what sequences experience in the engine, as its own clocks measured it, on the event loop's thread."""

    def observe_first_token(
        self, origin: RequestOrigin, seconds: float, queue_seconds: float
    ) -> None:
        """One sequence's first token came `seconds` after its arrival, of which it was queued for `queue_seconds`."""
        ...

    def observe_inter_token(self, origin: RequestOrigin, seconds: float) -> None:
        """One engine step gave a running sequence output, `seconds` after its previous output."""
        ...

    def observe_tokens(
        self, origin: RequestOrigin, num_prompt_tokens: int, num_generated_tokens: int
    ) -> None:
        """One output of a sequence; its prompt is counted with the first one."""
        ...

    def observe_finished(self, origin: RequestOrigin, seconds: float) -> None:
        """One sequence finished `seconds` after its arrival."""
        ...


class UsageSink(Protocol):
    """Takes what every request cost, as the engine counted it."""

    def observe_usage(self, tag: str, num_prompt_tokens: int, num_generated_tokens: int) -> None:
        """One sequence ended, finished or aborted; `tag` is its request's `RequestTag.tag`.

        A request of several prompts or choices is told once per sequence.
        """
        ...


class Engine(Protocol):
    """A running engine with one frozen base model. One per server, on the server's event loop.

    The handlers get a JSON object that was parsed once. `adapter` is an entry that the caller has
    leased and keeps leased until the response was sent; None asks for the bare base model. `tag`
    says who asks: slots are shared by it, its tenant's prefix blocks are kept apart and usage is
    reported under it; what a body says of these is ignored. Handlers validate the fields and raise
    `RequestValidationError` for the ones that do not hold.
    """

    @property
    def base_names(self) -> tuple[str, ...]:
        """Names that the base model answers to, the preferred one first."""
        ...

    @property
    def base_root(self) -> str:
        """Where the base model was loaded from."""
        ...

    @property
    def max_model_len(self) -> int:
        """Longest prompt and answer together, in tokens."""
        ...

    @property
    def adapters(self) -> AdapterRegistry:
        """The adapters that this engine serves."""
        ...

    def create_app(self) -> FastAPI:
        """Return a new application with the engine's own routes and middleware.

        The routes are /health, /ping, /version, /load and /metrics, nothing else.
        """
        ...

    @property
    def versions(self) -> Mapping[str, str]:
        """What runs here: `version` of ShadowServe and `engine_version`."""
        ...

    @property
    def is_traced(self) -> bool:
        """Whether spans are exported: OpenTelemetry is there and set up then."""
        ...

    @property
    def num_adapter_slots(self) -> int:
        """Places for adapters in device memory, those for pins included."""
        ...

    @property
    def max_step_adapters(self) -> int:
        """Distinct adapters that one engine step may mix."""
        ...

    @property
    def last_output_at(self) -> float | None:
        """Monotonic instant of the last sign of life; None before the first output.

        It is any sequence's output, a probe's included, or the end of a step after that.
        """
        ...

    def sequences(self) -> list[SequenceState]:
        """Return what the engine works on now. May be called on any thread."""
        ...

    async def generate_probe(self) -> None:
        """Generate one token of the base model outside of all statistics; takes as long as the engine takes.

        Raises whatever the engine raises.
        """
        ...

    def observe_requests(self, sink: RequestSink) -> None:
        """Tell `sink` of every sequence from now on; called once, before the first request."""
        ...

    def observe_usage(self, sink: UsageSink) -> None:
        """Send every sequence's usage to `sink` from now on; called once, before the first request."""
        ...

    def request_schemas(self) -> Mapping[str, dict[str, Any]]:
        """Return the JSON schema of the body of each generation route, by its path.

        Self-contained: `$defs` are inside each schema. For the API documents, never for checks.
        """
        ...

    def drain_with(self, num_requests: Callable[[], int]) -> None:
        """Give requests time when the engine is told to stop: it goes on until `num_requests` returns 0, or time is up.

        `num_requests` is called on another thread and counts every request whose response is not complete.
        """
        ...

    async def find_unready_reason(self) -> str | None:
        """Ask every worker whether the plugin is active.

        Returns:
            One sentence why requests would not be served now, None when they would. Takes a second at most: of workers
            that are late it is their last answer. Never raises.
        """
        ...

    async def complete(
        self, body: dict[str, Any], request: Request, adapter: AdapterEntry | None, tag: RequestTag
    ) -> Response:
        """Answer /v1/completions, streaming when the body asks for it."""
        ...

    async def chat(
        self, body: dict[str, Any], request: Request, adapter: AdapterEntry | None, tag: RequestTag
    ) -> Response:
        """Answer /v1/chat/completions, streaming when the body asks for it."""
        ...

    async def tokenize(
        self, body: dict[str, Any], request: Request, adapter: AdapterEntry | None, tag: RequestTag
    ) -> Response:
        """Answer /tokenize."""
        ...

    async def detokenize(
        self, body: dict[str, Any], request: Request, adapter: AdapterEntry | None, tag: RequestTag
    ) -> Response:
        """Answer /detokenize."""
        ...


def run_engine_server(
    arguments: list[str],
    add_arguments: Callable[[ArgumentParser], None],
    check: Callable[[Namespace], None],
    attach: Callable[[Engine, Namespace], FastAPI],
) -> int:
    """Serve until stopped: parse the `serve` command line, start vLLM, attach the server.

    Args:
        arguments: the words after `shadowserve serve`.
        add_arguments: adds the server's own options to the engine's parser.
        check: raises ConfigError when the server's options contradict each other; called before
            anything is started.
        attach: makes the application of the started engine from the parsed options.

    Returns:
        Exit status.
    """
    from shadow_runtime.vllm_bridge import serving

    return serving.main(arguments, add_arguments, check, attach)
