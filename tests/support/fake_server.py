"""An application over the fake engine, without sockets, and the shape of its errors."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from shadow_server.fake_engine import FakeEngine
from shadow_server.settings import ServerSettings
from shadow_server.tenancy.identity import SCOPE_KEY, Identity


@dataclass
class Server:
    """A running application without sockets."""

    engine: FakeEngine
    client: httpx.AsyncClient
    root: Path
    settings: ServerSettings
    app: Any

    def write_adapter(self, name: str, content: str = "") -> str:
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        (folder / "adapter.txt").write_text(content or f"weights of {name}")
        return str(folder)

    async def load(
        self, name: str, content: str = "", client: httpx.AsyncClient | None = None
    ) -> str:
        """Publish an adapter and return its digest."""
        path = self.write_adapter(name.replace("/", "-"), content)
        answer = await (client or self.client).post(
            "/v1/adapters", json={"name": name, "path": path}
        )
        assert answer.status_code in (200, 201), answer.text
        return answer.json()["digest"]

    async def complete(self, prompt="hi there", **fields) -> httpx.Response:
        return await self.client.post("/v1/completions", json={"prompt": prompt, **fields})

    def caller(self, identity: Identity) -> httpx.AsyncClient:
        """Return a client whose requests come from `identity`, whatever the middleware would say."""

        async def app(scope, receive, send):
            await self.app({**scope, SCOPE_KEY: identity}, receive, send)

        return client_of(app)


def client_of(app) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


@asynccontextmanager
async def running_client(app):
    """Yield a client of `app` while its lifespan runs."""
    async with app.router.lifespan_context(app), client_of(app) as client:
        yield client


def error_of(answer: httpx.Response) -> dict:
    """Return the OpenAI error of an answer, checking its whole shape."""
    assert answer.status_code >= 400, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    return error


async def settle(turns: int = 60) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(is_true, wait_seconds: float = 5.0) -> None:
    """Wait until `is_true()`; fails after `wait_seconds`."""
    for _ in range(int(wait_seconds / 0.005)):
        if is_true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the awaited state never came")
