"""Probes: alive while the process answers, ready while requests would be served.

Runs in: API process.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse

from shadow_server.engine import Engine
from shadow_server.errors import error_body, rule_of_status


def health_router(engine: Engine) -> APIRouter:
    """Return /health/live and /health/ready; /health itself is the engine's."""
    router = APIRouter()

    @router.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "alive"}

    @router.get("/health/ready")
    async def ready() -> JSONResponse:
        reason = await engine.find_unready_reason()
        if reason is None:
            return JSONResponse({"status": "ready"})
        body = error_body(reason, rule_of_status(503, "not_ready"))
        return JSONResponse({"status": "not ready"} | body, 503, {"retry-after": "1"})

    return router
