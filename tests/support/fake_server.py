"""An application over the fake engine, without sockets, and the shape of its errors."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import httpx

from shadow_server.fake_engine import FakeEngine
from shadow_server.settings import ServerSettings


@dataclass
class Server:
    """A running application without sockets."""

    engine: FakeEngine
    client: httpx.AsyncClient
    root: Path
    settings: ServerSettings

    def write_adapter(self, name: str, content: str = "") -> str:
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        (folder / "adapter.txt").write_text(content or f"weights of {name}")
        return str(folder)

    async def load(self, name: str, content: str = "") -> str:
        """Load an adapter and return its digest."""
        path = self.write_adapter(name, content)
        answer = await self.client.post("/v1/adapters", json={"name": name, "path": path})
        assert answer.status_code in (200, 201), answer.text
        return answer.json()["digest"]

    async def complete(self, prompt="hi there", **fields) -> httpx.Response:
        return await self.client.post("/v1/completions", json={"prompt": prompt, **fields})


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
