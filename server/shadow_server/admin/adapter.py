"""The adapter routes: publish, list, inspect, roll back, pin, delete, and vLLM's two names for it.

Runs in: API process. Every route takes the caller from the scope and reaches that tenant's adapters only.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from shadow_server.admin.describe import (
    describe_entry,
    describe_refusal,
    describe_report,
    describe_version,
)
from shadow_server.admin.level import LevelRefresh
from shadow_server.admin.naming import name_to_publish, reach, reach_name, shown_name
from shadow_server.admin.publish import Publication, Publisher
from shadow_server.admin.schema import (
    AdapterSource,
    LoadLoraAdapter,
    PublishAdapter,
    PublishUpload,
    Rollback,
    UnloadLoraAdapter,
    ValidateUpload,
)
from shadow_server.admin.source import MAX_BODY_BYTES, SourceReader, parse_body
from shadow_server.engine import AdapterEntry, AdapterName, Engine, runtime_errors
from shadow_server.openai.body import read_json_object
from shadow_server.settings import ServerSettings
from shadow_server.tenancy.identity import Identity, identity_of


class AdapterAdmin:
    """The adapter routes of one server; every change goes through the engine's registry."""

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        self._base_names = engine.base_names
        self._adapters = engine.adapters
        self._settings = settings
        self._levels = LevelRefresh(engine.adapters)
        self._publisher = Publisher(engine.adapters)
        self._sources = SourceReader(engine.adapters.store, settings)

    def router(self) -> APIRouter:
        """Return the routes; those that end in a word come before those that end in a name."""
        router = APIRouter()
        one = "/v1/adapters/{name:path}"
        for path, endpoint, method in (
            ("/v1/adapters", self.list_all, "GET"),
            ("/v1/adapters", self.publish, "POST"),
            ("/v1/adapters/validate", self.validate, "POST"),
            (f"{one}/versions", self.versions, "GET"),
            (f"{one}/rollback", self.rollback, "POST"),
            (f"{one}/pin", self.pin, "POST"),
            (f"{one}/unpin", self.unpin, "POST"),
            (one, self.get, "GET"),
            (one, self.delete, "DELETE"),
            ("/v1/load_lora_adapter", self.load_lora, "POST"),
            ("/v1/unload_lora_adapter", self.unload_lora, "POST"),
        ):
            router.add_api_route(path, endpoint, methods=[method], response_model=None)
        return router

    async def list_all(self, request: Request) -> dict[str, Any]:
        """List every adapter that the caller may see, those that still drain included."""
        await self._levels.refresh()
        identity = identity_of(request.scope)
        tenant = None if identity.role == "admin" else identity.tenant
        entries = self._adapters.entries(tenant)
        return {"object": "list", "data": [self._describe(e, identity) for e in entries]}

    async def get(self, request: Request, name: str) -> dict[str, Any]:
        """Describe one adapter, or one version of it (`name@3`)."""
        identity = identity_of(request.scope)
        found = reach(name, identity)
        await self._levels.refresh()
        return self._describe(self._adapters.get(*found), identity)

    async def versions(self, request: Request, name: str) -> dict[str, Any]:
        """List the versions of an adapter, oldest first."""
        found = reach_name(name, identity_of(request.scope))
        records = self._adapters.versions(found)
        current = self._adapters.get(found).version
        cards = [describe_version(r, is_current=r.version == current) for r in records]
        return {"object": "list", "data": cards}

    async def publish(self, request: Request) -> Response:
        """Publish an adapter: 201 a new version, 202 the same without waiting, 200 unchanged."""
        return await self._publisher.finish(self._publish(request))

    async def _publish(self, request: Request) -> Response:
        identity = identity_of(request.scope)

        def to_name(asked: PublishAdapter | PublishUpload) -> AdapterName:
            return name_to_publish(asked.name, identity, self._base_names, "name")

        body, source = await self._sources.read(request, PublishAdapter, PublishUpload, to_name)
        publication = Publication(to_name(body), source, identity, body.can_replace, body.wait)
        return await self._publisher.answer(publication, stream=body.stream)

    async def validate(self, request: Request) -> dict[str, Any]:
        """Report everything about an adapter's files and change nothing: 200 for bad ones too."""
        return await self._publisher.finish(self._validate(request))

    async def _validate(self, request: Request) -> dict[str, Any]:
        started_at = time.monotonic()
        try:
            _, source = await self._sources.read(request, AdapterSource, ValidateUpload, _accept)
            staged = await self._publisher.stage(source)
        except runtime_errors.AdapterError as error:
            return describe_refusal(error.code, str(error), time.monotonic() - started_at)
        try:
            config = staged.backbone_config
            report = await self._adapters.validator.report(
                str(staged.path), None if config is None else str(config)
            )
        finally:
            await asyncio.to_thread(staged.discard)
        return describe_report(report, staged.num_bytes)

    async def rollback(self, request: Request, name: str) -> JSONResponse:
        """Bind a name to an earlier version's bytes: 201 a new version, 200 unchanged."""
        identity = identity_of(request.scope)
        found = reach_name(name, identity)
        body = parse_body(await _read_optional_object(request), Rollback)
        async with self._publisher.room(found, identity):
            outcome = await self._adapters.rollback(found, body.version)
        card = self._describe(outcome.entry, identity)
        if outcome.replaced is not None:
            card["replaced_digest"] = outcome.replaced.digest
        return JSONResponse(card, 201 if outcome.is_new else 200)

    async def pin(self, request: Request, name: str) -> dict[str, Any]:
        """Keep an adapter resident."""
        identity = identity_of(request.scope)
        found = reach_name(name, identity)
        async with self._publisher.room(found, identity, self._adapters.get(found).digest):
            return self._describe(await self._adapters.pin(found), identity)

    async def unpin(self, request: Request, name: str) -> dict[str, Any]:
        """Let an adapter be evicted again."""
        identity = identity_of(request.scope)
        return self._describe(await self._adapters.unpin(reach_name(name, identity)), identity)

    async def delete(self, request: Request, name: str) -> JSONResponse:
        """Delete an adapter: 200 once it has left the engine, 202 while requests still use it."""
        identity = identity_of(request.scope)
        entry = await self._delete(reach_name(name, identity))
        if not entry.settled.is_set():
            return JSONResponse(self._describe(entry, identity), 202)
        shown = shown_name(entry.name, identity)
        return JSONResponse(
            {"id": shown, "object": "adapter", "deleted": True, "digest": entry.digest}
        )

    async def load_lora(self, request: Request) -> PlainTextResponse:
        """Publish an adapter as vLLM's clients ask for it; replaces only with `load_inplace`."""
        identity = identity_of(request.scope)
        body = parse_body(await read_json_object(request, MAX_BODY_BYTES), LoadLoraAdapter)
        name = name_to_publish(body.lora_name, identity, self._base_names, "lora_name")
        source = await self._sources.of_directory(body.lora_path, param="lora_path")
        await self._publisher.publish(Publication(name, source, identity, body.load_inplace))
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload_lora(self, request: Request) -> PlainTextResponse:
        """Delete an adapter as vLLM's clients ask for it; its name is free at once."""
        body = parse_body(await read_json_object(request, MAX_BODY_BYTES), UnloadLoraAdapter)
        await self._delete(reach_name(body.lora_name, identity_of(request.scope)))
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    async def _delete(self, name: AdapterName) -> AdapterEntry:
        return await self._adapters.delete(name, wait_seconds=self._settings.unload_wait_seconds)

    def _describe(self, entry: AdapterEntry, identity: Identity) -> dict[str, Any]:
        return describe_entry(entry, self._adapters, identity)


def _accept(asked: object) -> None:
    """No field of a validation is refused."""


async def _read_optional_object(request: Request) -> dict[str, Any]:
    if "content-type" not in request.headers and not await request.body():
        return {}
    return await read_json_object(request, MAX_BODY_BYTES)
