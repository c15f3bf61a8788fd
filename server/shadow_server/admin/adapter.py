"""The adapter routes: list, load, inspect, unload, and vLLM's two names for load and unload.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse, PlainTextResponse

from shadow_server.admin.path import resolve_adapter_path
from shadow_server.admin.schema import LoadAdapter, LoadLoraAdapter, UnloadLoraAdapter
from shadow_server.engine import AdapterEntry, Engine, is_adapter_name
from shadow_server.errors import ApiError, describe_validation
from shadow_server.openai.body import read_json_object
from shadow_server.settings import ServerSettings

_MAX_BODY_BYTES = 64 << 10

BodyT = TypeVar("BodyT", bound=BaseModel)


def describe_entry(entry: AdapterEntry) -> dict[str, Any]:
    """Return what the routes tell about an adapter."""
    manifest = entry.handle.manifest
    return {
        "id": entry.name,
        "object": "adapter",
        "name": entry.name,
        "created": entry.created_at_unix,
        "state": entry.state.value,
        "digest": entry.digest,
        "format": manifest.format,
        "path": manifest.path,
        "backbone_config": manifest.backbone_config,
        "num_parameters": manifest.num_parameters,
        "num_running_requests": entry.num_leases,
        "notes": list(manifest.notes),
    }


class AdapterAdmin:
    """The adapter routes of one server; every change goes through the engine's registry."""

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        self._engine = engine
        self._settings = settings

    def router(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter()
        router.add_api_route("/v1/adapters", self.list_all, methods=["GET"])
        router.add_api_route("/v1/adapters", self.load, methods=["POST"], status_code=201)
        router.add_api_route("/v1/adapters/{name}", self.get, methods=["GET"])
        router.add_api_route("/v1/adapters/{name}", self.unload, methods=["DELETE"])
        router.add_api_route("/v1/load_lora_adapter", self.load_lora, methods=["POST"])
        router.add_api_route("/v1/unload_lora_adapter", self.unload_lora, methods=["POST"])
        return router

    async def list_all(self) -> dict[str, Any]:
        """List every adapter, those that still drain included."""
        entries = self._engine.adapters.entries()
        return {"object": "list", "data": [describe_entry(entry) for entry in entries]}

    async def get(self, name: str) -> dict[str, Any]:
        """Describe one adapter."""
        return describe_entry(self._engine.adapters.get(name))

    async def load(self, request: Request) -> JSONResponse:
        """Load an adapter, or replace the one of that name: 201, or 200 when nothing changed."""
        body = await _read(request, LoadAdapter)
        self._check_name(body.name, "name")
        path = await self._resolve(body.path, "path")
        config = body.backbone_config
        if config is not None:
            config = await self._resolve(config, "backbone_config")
        outcome = await self._engine.adapters.load(body.name, path, config)
        content = describe_entry(outcome.entry)
        if outcome.replaced is not None:
            content["replaced_digest"] = outcome.replaced.digest
        return JSONResponse(content, 201 if outcome.is_new else 200)

    async def unload(self, name: str) -> JSONResponse:
        """Unload an adapter: 200 once it has left the engine, 202 while requests still use it."""
        entry = await self._engine.adapters.unload(
            name, wait_seconds=self._settings.unload_wait_seconds
        )
        if not entry.settled.is_set():
            return JSONResponse(describe_entry(entry), 202)
        return JSONResponse(
            {"id": name, "object": "adapter", "deleted": True, "digest": entry.digest}
        )

    async def load_lora(self, request: Request) -> PlainTextResponse:
        """Load an adapter as vLLM's clients ask for it; replaces only with `load_inplace`."""
        body = await _read(request, LoadLoraAdapter)
        self._check_name(body.lora_name, "lora_name")
        path = await self._resolve(body.lora_path, "lora_path")
        await self._engine.adapters.load(body.lora_name, path, can_replace=body.load_inplace)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload_lora(self, request: Request) -> PlainTextResponse:
        """Unload an adapter as vLLM's clients ask for it; its name is free at once."""
        body = await _read(request, UnloadLoraAdapter)
        await self._engine.adapters.unload(
            body.lora_name, wait_seconds=self._settings.unload_wait_seconds
        )
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    async def _resolve(self, text: str, param: str) -> str:
        # A root on a network disk must not stop the event loop.
        return await asyncio.to_thread(
            resolve_adapter_path, text, self._settings.adapter_roots, param
        )

    def _check_name(self, name: str, param: str) -> None:
        if not is_adapter_name(name):
            raise ApiError(
                400,
                "An adapter name is 1 to 128 letters, digits, '.', '_' or '-', "
                "the first a letter or digit",
                code="adapter_name_invalid",
                param=param,
            )
        if name in self._engine.base_names:
            raise ApiError(
                400, "The name is the base model's", code="adapter_name_invalid", param=param
            )


async def _read(request: Request, model: type[BodyT]) -> BodyT:
    body = await read_json_object(request, _MAX_BODY_BYTES)
    try:
        return model.model_validate(body)
    except ValidationError as error:
        message, param = describe_validation(error.errors(include_input=False))
        raise ApiError(400, message, param=param) from None
