"""Probes: alive while the process answers, ready while requests would be served.

Runs in: API process.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.responses import JSONResponse

from shadow_server.engine import Engine
from shadow_server.errors import error_body, rule_of_status
from shadow_server.generation_watch import GenerationWatch


def health_router(engine: Engine) -> APIRouter:
    """Return /health/live and /health/ready; /health itself is the engine's."""
    router = APIRouter()
    watch = GenerationWatch(engine)

    @router.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "alive"}

    @router.get("/health/ready")
    async def ready() -> JSONResponse:
        reason = await _find_unready_reason(engine, watch)
        if reason is None:
            return JSONResponse({"status": "ready"})
        body = error_body(reason, rule_of_status(503, "not_ready"))
        return JSONResponse({"status": "not ready"} | body, 503, {"retry-after": "1"})

    return router


async def _find_unready_reason(engine: Engine, watch: GenerationWatch) -> str | None:
    """Ask for both at once, which takes the longer time, a second at most; what the engine knows goes first."""
    generation = asyncio.create_task(watch.find_reason())
    try:
        return await engine.find_unready_reason() or await generation
    finally:
        generation.cancel()
