"""The list of models: the base and, below it, every adapter that answers.

Runs in: API process.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from shadow_server.engine import AdapterEntry, AdapterState, Engine, runtime_errors
from shadow_server.errors import ApiError


def models_router(engine: Engine, started_at_unix: int) -> APIRouter:
    """Return /v1/models and /v1/models/{name}.

    Args:
        engine: the engine to list.
        started_at_unix: seconds since the epoch, told as the base model's creation.
    """
    router = APIRouter()

    def base_cards() -> list[dict[str, Any]]:
        return [
            _card(name, engine, created=started_at_unix, root=engine.base_root)
            for name in engine.base_names
        ]

    def adapter_card(entry: AdapterEntry) -> dict[str, Any]:
        manifest = entry.handle.manifest
        card = _card(entry.name, engine, created=entry.created_at_unix, root=manifest.path)
        return card | {
            "parent": engine.base_names[0],
            "digest": entry.digest,
            "format": manifest.format,
        }

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        answering = (e for e in engine.adapters.entries() if e.state is AdapterState.RESIDENT)
        return {"object": "list", "data": base_cards() + [adapter_card(e) for e in answering]}

    @router.get("/v1/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        for card in base_cards():
            if card["id"] == name:
                return card
        try:
            with engine.adapters.lease(name) as lease:
                return adapter_card(lease.entry)
        except runtime_errors.AdapterNotFoundError:
            raise ApiError(
                404, f"The model '{name[:256]}' does not exist", code="model_not_found"
            ) from None

    return router


def _card(name: str, engine: Engine, *, created: int, root: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "shadowserve",
        "root": root,
        "parent": None,
        "max_model_len": engine.max_model_len,
        "permission": [],
        "digest": None,
        "format": None,
    }
