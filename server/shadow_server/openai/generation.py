"""The routes that run the engine: each holds its place and its adapter from before the first token to the last.

Runs in: API process.

    identity -> place in the queue, or 429/503 before the body is read -> body -> adapter and version -> tokens of the
    minute -> lease, waiting until the adapter is resident -> engine -> headers -> stream -> everything given back
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from shadow_server.engine import (
    AdapterEntry,
    Engine,
    Lease,
    RequestTag,
    runtime_errors,
)
from shadow_server.errors import ApiError
from shadow_server.middleware.request_id import internal_id_of
from shadow_server.openai.account import RequestAccount, RequestLog
from shadow_server.openai.body import check_cache_salt, read_json_object
from shadow_server.openai.connection import lease_while_connected
from shadow_server.openai.estimate import estimate_tokens
from shadow_server.openai.outcome import AnswerWatch
from shadow_server.openai.rate_limit import rate_headers
from shadow_server.openai.resolve import AskedAdapter, adapter_not_found, resolve_adapter
from shadow_server.settings import ServerSettings
from shadow_server.tenancy.admission import Admission, Ticket
from shadow_server.tenancy.identity import Identity, identity_of
from shadow_server.tenancy.refusal import RefusalError

ADAPTER_HEADER = "x-shadow-adapter"
VERSION_HEADER = "x-shadow-adapter-version"
DIGEST_HEADER = "x-shadow-adapter-digest"

_CLIENT_LEFT_STATUS = 499

Handler = Callable[[dict[str, Any], Request, AdapterEntry | None, RequestTag], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class _Call:
    account: RequestAccount | None
    body: dict[str, Any]
    request: Request
    watch: AnswerWatch
    ticket: Ticket
    tag: RequestTag


class GenerationEndpoint:
    """One engine route as an ASGI application.

    ASGI and not a FastAPI handler, so that one `with` spans the response too: place and lease are given back when
    the last byte was sent, or the client left, or anything was raised, and at no other time.
    """

    def __init__(
        self,
        engine: Engine,
        settings: ServerSettings,
        admission: Admission,
        handler: Handler,
        *,
        generates: bool,
        log: RequestLog,
    ) -> None:
        """Serve one route.

        Args:
            engine: whose adapters are leased.
            settings: the server's settings.
            admission: shared by all routes.
            handler: the engine's.
            generates: the route takes tokens of the tenant's minute, and its requests are counted.
            log: shared by all routes.
        """
        self._engine = engine
        self._settings = settings
        self.admission = admission
        self._handler = handler
        self._generates = generates
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit, resolve, lease, answer, release."""
        identity, watch = identity_of(scope), AnswerWatch(send)
        if not self._generates:
            await self._serve(identity, scope, receive, watch)
            return
        account = RequestAccount(self._log, scope, identity.tenant)
        error: BaseException | None = None
        try:
            await self._serve(identity, scope, receive, watch, account)
        except BaseException as raised:
            error = raised
            raise
        finally:
            account.close(watch, error)

    async def _serve(
        self,
        identity: Identity,
        scope: Scope,
        receive: Receive,
        watch: AnswerWatch,
        account: RequestAccount | None = None,
    ) -> None:
        try:
            await self._admit(identity, scope, receive, watch, account)
        except RefusalError as refusal:
            self._log.rejections.count(refusal.code, identity.tenant)
            raise

    async def _admit(
        self,
        identity: Identity,
        scope: Scope,
        receive: Receive,
        watch: AnswerWatch,
        account: RequestAccount | None,
    ) -> None:
        with self.admission.admit(identity) as ticket:
            request = Request(scope, receive, watch)
            try:
                body = await self._read(request)
            except ClientDisconnect:
                return
            check_cache_salt(body)
            names, has_adapter = self._engine.base_names, self._engine.adapters.has
            asked = resolve_adapter(body, names, identity, has_adapter)
            call = _Call(account, body, request, watch, ticket, _tag(scope, identity))
            self._check_quotas(call, identity, asked)
            if asked is None:
                await self._answer(call, None)
                return
            lease = await self._lease(call, identity, asked)
            if lease is not None:
                with lease:
                    await self._answer(call, lease.entry)

    async def _read(self, request: Request) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self._settings.max_body_seconds):
                return await read_json_object(request, self._settings.max_body_bytes)
        except TimeoutError:
            raise ApiError(408, "The body of the request stopped coming") from None

    def _check_quotas(self, call: _Call, identity: Identity, asked: AskedAdapter | None) -> None:
        if asked is None and not identity.can_use_base:
            message = "The key may not use the bare base model: name an adapter"
            raise ApiError.of("base_model_forbidden", message, param="model")
        if self._generates and call.ticket.has_token_limit:
            num_tokens = estimate_tokens(call.body, self._engine.max_model_len)
            call.ticket.take_tokens(call.tag.tag, num_tokens)

    async def _lease(self, call: _Call, identity: Identity, asked: AskedAdapter) -> Lease | None:
        asked_at = time.monotonic()
        try:
            lease = self._acquire(call.ticket, identity, asked)
            return await lease_while_connected(lease, call.request.receive)
        except runtime_errors.AdapterNotFoundError:
            raise adapter_not_found(asked.text) from None
        finally:
            if call.account is not None:
                call.account.note_lease(asked_at, asked.name.display)

    async def _acquire(self, ticket: Ticket, identity: Identity, asked: AskedAdapter) -> Lease:
        adapters, most = self._engine.adapters, identity.quotas.max_resident_adapters
        if most is not None and asked.name.tenant == identity.tenant:
            digest = adapters.get(asked.name, asked.version).digest
            if not await adapters.make_room(identity.tenant, most, digest):
                message = f"At most {most} of the tenant's adapters are resident at once"
                raise ticket.refusal(message)
        # Nothing is awaited in between: room that was found cannot be taken by another request.
        return await adapters.lease(asked.name, asked.version)

    async def _answer(self, call: _Call, entry: AdapterEntry | None) -> None:
        if call.account is not None:
            call.account.begin(entry)
        try:
            response = await self._handler(call.body, call.request, entry, call.tag)
        except asyncio.CancelledError:
            call.ticket.mark_run()
            raise
        if response.status_code < 400 or response.status_code == _CLIENT_LEFT_STATUS:
            call.ticket.mark_run()
            response.headers.update(rate_headers(call.ticket.rates()))
        if entry is not None:
            _sign(response, entry)
        # Not after the last byte: who has it and asks again at once finds the place free.
        call.watch.call_before_end(call.ticket.release)
        await response(call.request.scope, call.request.receive, call.watch)


def _tag(scope: Scope, identity: Identity) -> RequestTag:
    return RequestTag(internal_id_of(scope), identity.tenant, identity.weight, identity.cache_salt)


def _sign(response: Response, entry: AdapterEntry) -> None:
    response.headers[ADAPTER_HEADER] = entry.name.display
    response.headers[VERSION_HEADER] = str(entry.version)
    response.headers[DIGEST_HEADER] = entry.digest


def attach_generation(
    app: FastAPI,
    engine: Engine,
    settings: ServerSettings,
    admission: Admission,
    log: RequestLog,
) -> None:
    """Add the completion, chat and tokenizer routes to `app`."""
    handlers: dict[str, tuple[Handler, bool]] = {
        "/v1/completions": (engine.complete, True),
        "/v1/chat/completions": (engine.chat, True),
        "/tokenize": (engine.tokenize, False),
        "/detokenize": (engine.detokenize, False),
    }
    for path, (handler, generates) in handlers.items():
        endpoint = GenerationEndpoint(
            engine,
            settings,
            admission,
            handler,
            generates=generates,
            log=log,
        )
        app.router.routes.append(Route(path, endpoint, methods=["POST"]))
