"""The fake engine's application behind a real socket, on a thread of this process: tests hold its engine while a
browser looks at it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from prometheus_client import CollectorRegistry
from starlette.responses import JSONResponse

from fake_server import until
from shadow_server.app import build_app
from shadow_server.fake_engine import FakeEngine
from shadow_server.settings import ServerSettings
from shadow_server.tenancy.directory import TenantDirectory

START_SECONDS = 60


class ConsoleServer:
    """Use as a context manager.

    Args:
        folder: of the registry's state.
        tenants: the tenants file, None for a server without keys.
        port: where it listens; 0 finds a free one.

    Attributes:
        engine: the fake engine; `call` reaches it on its own thread.
        cards: what GET /v1/adapters lists instead of the truth; None for the truth.
        asked: the addresses of all requests, with their queries.
        port, url: known inside.
    """

    def __init__(self, folder: Path, tenants: Path | None = None, port: int = 0) -> None:
        self.engine: FakeEngine
        self.cards: list[dict[str, Any]] | None = None
        self.asked: list[str] = []
        self.port = port
        self._folder = folder
        self._tenants = tenants
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> ConsoleServer:
        self._thread.start()
        assert self._ready.wait(START_SECONDS), "the server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()

    def publish(self, name: str, key: str | None = None) -> str:
        """Upload an adapter and return its digest."""
        files = {"file": ("adapter.txt", f"weights of {name}")}
        answer = self._post("/v1/adapters", key, data={"name": name}, files=files)
        return answer.json()["digest"]

    def complete(self, count: int = 1, key: str | None = None, **fields: Any) -> None:
        """Ask for completions, one after the other."""
        for _ in range(count):
            self._post("/v1/completions", key, json={"prompt": "hi there", **fields})

    def _post(self, path: str, key: str | None, **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        answer = httpx.post(f"{self.url}{path}", headers=headers, timeout=30, **options)
        assert answer.status_code in (200, 201), answer.text
        return answer

    def call(self, work: Callable[[], Any]) -> None:
        """Run `work` on the server's thread."""
        self._loop.call_soon_threadsafe(work)

    def hold(self) -> None:
        """Let every answer stop after its first word, until `release`."""
        self.engine.gate = asyncio.Event()

    def release(self) -> None:
        gate = self.engine.gate
        assert gate is not None
        self.call(gate.set)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            registry = CollectorRegistry()
            self.engine = await stack.enter_async_context(FakeEngine.open(self._folder, registry))
            directory = None if self._tenants is None else TenantDirectory(self._tenants)
            self._app = build_app(self.engine, ServerSettings(), registry, directory)
            config = uvicorn.Config(
                self._answer,
                interface="asgi3",
                port=self.port,
                log_level="error",
                timeout_graceful_shutdown=1,
            )
            self._server = uvicorn.Server(config)
            running = asyncio.create_task(self._server.serve())
            await until(lambda: self._server.started, START_SECONDS)
            self.port = self._server.servers[0].sockets[0].getsockname()[1]
            self.url = f"http://127.0.0.1:{self.port}"
            self._ready.set()
            await running

    async def _answer(self, scope, receive, send) -> None:
        if scope["type"] == "http":
            self.asked.append(f"{scope['path']}?{scope['query_string'].decode()}")
            if self.cards is not None and (scope["method"], scope["path"]) == (
                "GET",
                "/v1/adapters",
            ):
                body = {"object": "list", "data": self.cards}
                await JSONResponse(body)(scope, receive, send)
                return
        await self._app(scope, receive, send)
