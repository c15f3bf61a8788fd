"""The whole application: the engine's own routes, and in front of them the server's.

Runs in: API process.
"""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import FastAPI
from prometheus_client import REGISTRY, CollectorRegistry

from shadow_server.admin.adapter import AdapterAdmin
from shadow_server.engine import Engine
from shadow_server.error_shape import attach_errors
from shadow_server.health import health_router
from shadow_server.observability.adapter import AdapterGauges
from shadow_server.observability.latency import AdapterLatency
from shadow_server.openai.generation import attach_generation
from shadow_server.openai.models import models_router
from shadow_server.settings import ServerSettings


def build_app(
    engine: Engine, settings: ServerSettings, registry: CollectorRegistry = REGISTRY
) -> FastAPI:
    """Return the application that serves `engine`.

    Args:
        engine: a started engine.
        settings: the server's settings.
        registry: where the series go; the one that the engine's /metrics shows.
    """
    latency = AdapterLatency(settings.max_adapter_labels)
    engine.observe_latency(latency)
    registry.register(latency)
    registry.register(AdapterGauges(engine.adapters))
    app = engine.create_app()
    attach_generation(app, engine, settings)
    app.include_router(models_router(engine, int(datetime.now(UTC).timestamp())))
    app.include_router(AdapterAdmin(engine, settings).router())
    app.include_router(health_router(engine))
    attach_errors(app, settings)
    return app
