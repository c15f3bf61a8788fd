"""A real server over the shipped demo, as end-to-end tests see it: an address and what must be answered."""

import asyncio
import socket
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from shadow_server.demo import demo_adapter_paths, demo_prompts
from shadow_server.demo_command import BASE_NAME, serve_arguments
from shadow_server.server_process import ServerProcess

ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    # Tests read the log, and engines inside the test process are quieter than that.
    "VLLM_LOGGING_LEVEL": "INFO",
}
START_SECONDS = 240.0
BUSY_TOKENS = 600
"""Tokens that keep a request running for about a second on the demo."""


@dataclass
class RunningServer:
    """A started server.

    Attributes:
        process: the server's process.
        root: a directory that adapters may be loaded from, empty at first.
        client: a blocking HTTP client of the server.
    """

    process: ServerProcess
    root: Path
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.process.url, timeout=60)

    def complete(self, prompt=None, adapter=None, **fields) -> httpx.Response:
        body = {"prompt": PROMPTS[0].prompt if prompt is None else prompt, **GREEDY, **fields}
        if adapter is not None:
            body["adapter"] = adapter
        return self.client.post("/v1/completions", json=body)

    def load(self, name: str, path: Path | str) -> httpx.Response:
        return self.client.post("/v1/adapters", json={"name": name, "path": str(path)})

    def unload(self, name: str) -> httpx.Response:
        return self.client.delete(f"/v1/adapters/{name}")

    def samples(self) -> dict[str, float]:
        """Return every sample of /metrics by its name and labels, as printed."""
        lines = self.client.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    async def burst(
        self, bodies: list[dict], path: str = "/v1/completions"
    ) -> list[httpx.Response]:
        """Post all bodies at once and return the answers in their order."""
        async with httpx.AsyncClient(base_url=self.process.url, timeout=120) as client:
            return await asyncio.gather(*(client.post(path, json=body) for body in bodies))


PROMPTS = demo_prompts()
ADAPTERS = demo_adapter_paths()
GREEDY = {"max_tokens": 48, "temperature": 0}
BASE = BASE_NAME
UNLOADED = "passive"
"""The shipped adapter that the server does not start with."""


def arguments(root: Path) -> list[str]:
    """Return the demo's command line without one of its adapters, with another root to load from."""
    words = serve_arguments(root.parent / "state")
    position = words.index(f"{UNLOADED}={ADAPTERS[UNLOADED]}")
    return [*words[: position - 1], *words[position + 1 :], "--adapter-root", str(root)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]
