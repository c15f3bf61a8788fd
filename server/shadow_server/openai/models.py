"""The list of models: the base and, below it, every adapter that answers.

Runs in: API process.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from shadow_server.admin.describe import source_path
from shadow_server.admin.naming import shown_name
from shadow_server.engine import (
    AdapterEntry,
    AdapterState,
    Engine,
    parse_adapter,
    runtime_errors,
)
from shadow_server.errors import ApiError
from shadow_server.tenancy.identity import Identity, identity_of


def models_router(engine: Engine, started_at_unix: int) -> APIRouter:
    """Return /v1/models and /v1/models/{name}.

    Args:
        engine: the engine to list.
        started_at_unix: seconds since the epoch, told as the base model's creation.
    """
    models = _Models(engine, started_at_unix)
    router = APIRouter()
    router.add_api_route("/v1/models", models.list_all, response_model=None)
    router.add_api_route("/v1/models/{name:path}", models.get, response_model=None)
    return router


class _Models:
    def __init__(self, engine: Engine, started_at_unix: int) -> None:
        self._engine = engine
        self._started_at_unix = started_at_unix

    async def list_all(self, request: Request) -> dict[str, Any]:
        """List the models that the caller can ask: the base, if it may, and every adapter that answers."""
        identity = identity_of(request.scope)
        tenant = None if identity.role == "admin" else identity.tenant
        entries = self._engine.adapters.entries(tenant)
        answering = (e for e in entries if e.state is not AdapterState.DRAINING)
        cards = self._base_cards(identity) + [self._adapter_card(e, identity) for e in answering]
        return {"object": "list", "data": cards}

    async def get(self, request: Request, name: str) -> dict[str, Any]:
        """Describe one model by a name that a request's `model` may have."""
        identity = identity_of(request.scope)
        for card in self._base_cards(identity):
            if card["id"] == name:
                return card
        entry = self._find_entry(name, identity)
        if entry is None:
            message = f"The model '{name[:256]}' does not exist"
            raise ApiError.of("model_not_found", message, param="model")
        return self._adapter_card(entry, identity)

    def _find_entry(self, name: str, identity: Identity) -> AdapterEntry | None:
        found = parse_adapter(name, identity.tenant)
        if found is None or not identity.can_reach(found[0]):
            return None
        adapters = self._engine.adapters
        try:
            return adapters.get(*found) if adapters.has(*found) else None
        except runtime_errors.AdapterNotFoundError:
            return None

    def _base_cards(self, identity: Identity) -> list[dict[str, Any]]:
        if not identity.can_use_base:
            return []
        return [self._card(n, self._started_at_unix) for n in self._engine.base_names]

    def _adapter_card(self, entry: AdapterEntry, identity: Identity) -> dict[str, Any]:
        record = entry.record
        card = self._card(shown_name(entry.name, identity), record.created_at_unix)
        return card | {
            "root": source_path(record.source) or record.source,
            "parent": self._engine.base_names[0],
            "digest": entry.digest,
            "version": entry.version,
            "state": entry.state.value,
            "tenant": entry.name.tenant,
            "format": entry.manifest.format,
        }

    def _card(self, name: str, created: int) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "shadowserve",
            "root": self._engine.base_root,
            "parent": None,
            "max_model_len": self._engine.max_model_len,
            "permission": [],
            "digest": None,
            "version": None,
            "state": None,
            "tenant": None,
            "format": None,
        }
