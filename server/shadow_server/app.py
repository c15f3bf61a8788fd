"""The whole application: the engine's own routes, and in front of them the server's.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI
from prometheus_client import REGISTRY, CollectorRegistry

from shadow_server.admin.adapter import AdapterAdmin
from shadow_server.admin.level import LevelRefresh
from shadow_server.console_page import console_router
from shadow_server.engine import Engine
from shadow_server.error_shape import attach_errors
from shadow_server.health import health_router
from shadow_server.middleware.authentication import AuthenticationMiddleware
from shadow_server.middleware.request_id import RequestIdMiddleware
from shadow_server.observability.adapter import AdapterEvents, AdapterGauges
from shadow_server.observability.quota import QuotaGauges
from shadow_server.observability.rejection import RequestRejections
from shadow_server.observability.request import RequestMetrics
from shadow_server.observability.residency import ResidencyGauges
from shadow_server.openai.account import RequestLog
from shadow_server.openai.generation import attach_generation
from shadow_server.openai.models import models_router
from shadow_server.openapi import attach_openapi
from shadow_server.settings import ServerSettings
from shadow_server.tenancy.admission import Admission, default_max_queued
from shadow_server.tenancy.directory import TenantDirectory


def build_app(
    engine: Engine,
    settings: ServerSettings,
    registry: CollectorRegistry = REGISTRY,
    tenants: TenantDirectory | None = None,
) -> FastAPI:
    """Return the application that serves `engine`.

    Args:
        engine: a started engine.
        settings: the server's settings.
        registry: where the series go; the one that the engine's /metrics shows.
        tenants: who may use the server; None lets everyone in as an admin.
    """
    rejections = RequestRejections()
    registry.register(rejections)
    requests = observe_engine(engine, settings, registry)
    admission = make_admission(settings, is_shared=tenants is not None)
    engine.observe_usage(admission.ledger)
    engine.drain_with(lambda: admission.num_requests)
    registry.register(QuotaGauges(admission.uses))
    app = engine.create_app()
    attach_generation(app, engine, settings, admission, RequestLog(rejections, requests))
    app.include_router(models_router(engine, int(datetime.now(UTC).timestamp())))
    app.include_router(AdapterAdmin(engine, settings).router())
    app.include_router(health_router(engine))
    app.include_router(console_router())
    run_beside(app, LevelRefresh(engine.adapters).keep_fresh)
    attach_openapi(app, engine)
    if tenants is not None:
        attach_tenants(app, tenants, rejections)
    if engine.is_traced:
        attach_traces(app, engine)
    # Outermost last: the id, then the one error shape, then the spans, then the keys.
    attach_errors(app, settings)
    app.add_middleware(RequestIdMiddleware)
    return app


def observe_engine(
    engine: Engine, settings: ServerSettings, registry: CollectorRegistry
) -> RequestMetrics:
    """Show what the engine and its adapters do as series of `registry`."""
    requests = RequestMetrics(settings.max_adapter_labels, engine.sequences)
    events = AdapterEvents()
    engine.observe_requests(requests)
    engine.adapters.events = events
    for collector in (requests, events, AdapterGauges(engine.adapters), ResidencyGauges(engine)):
        registry.register(collector)
    return requests


def attach_traces(app: FastAPI, engine: Engine) -> None:
    """Open a span for each request for generation, and one for each load of an adapter."""
    # OpenTelemetry comes with the engine, and a server without traces does without it.
    from shadow_server.middleware.trace import TracedEvents, TraceMiddleware

    engine.adapters.events = TracedEvents(engine.adapters.events)
    app.add_middleware(TraceMiddleware)


def make_admission(settings: ServerSettings, *, is_shared: bool) -> Admission:
    """Return the queue that the settings describe; a shared one keeps room for tenants that have no requests."""
    max_running, max_queued = settings.max_running_requests, settings.max_queued_requests
    if max_queued is None:
        max_queued = default_max_queued(max_running)
    return Admission(max_running, max_queued, newcomer_weight=1.0 if is_shared else 0.0)


def attach_tenants(app: FastAPI, tenants: TenantDirectory, rejections: RequestRejections) -> None:
    """Ask for keys on every route that needs one, and follow the tenants file while the server runs."""
    app.add_middleware(AuthenticationMiddleware, keys=tenants, count_refusal=rejections.count)
    run_beside(app, tenants.watch)


def run_beside(app: FastAPI, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `work` as long as the application runs; it ends by being cancelled."""
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with inner(app) as state:
            task = asyncio.create_task(work())
            try:
                yield state
            finally:
                task.cancel()

    app.router.lifespan_context = lifespan
