"""The application over the fake engine behind a real HTTP server, in a process of its own.

Run as a program it serves until its standard input closes; `LoopbackServer` starts it.
"""

import asyncio
import gc
import json
import os
import random
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn
from prometheus_client import CollectorRegistry

from fake_server import until
from shadow_server.app import build_app
from shadow_server.fake_engine import FakeEngine
from shadow_server.settings import ServerSettings
from shadow_server.tenancy.directory import TenantDirectory

START_SECONDS = 60


@contextmanager
def before_others():
    """Let this process run before the machine's other programs, where that is allowed: for timings."""
    pid, before = 0, os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, pid, -15)
    try:
        yield
    finally:
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, pid, before)


class SlowEngine(FakeEngine):
    """Every answer takes about `service_seconds`, however many there are at once."""

    service_seconds = 0.0
    _random = random.Random(4)

    async def _run(self, adapter, tag):
        # Spread, or else all of them would start and end in one moment for ever.
        await asyncio.sleep(self._random.uniform(0.5, 1.5) * self.service_seconds)
        await super()._run(adapter, tag)


class LoopbackServer:
    """Use as a context manager; `url` and `port` are known inside.

    Args:
        folder: of the registry's state.
        tenants: the tenants file, None for a server without keys.
        service_seconds: how long an answer takes.
        settings: fields of ServerSettings.
    """

    def __init__(
        self, folder: Path, tenants: Path | None = None, service_seconds: float = 0.0, **settings
    ) -> None:
        self._options = {
            "folder": str(folder),
            "tenants": None if tenants is None else str(tenants),
            "service_seconds": service_seconds,
            "settings": settings,
        }

    def __enter__(self) -> "LoopbackServer":
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(self._options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with {self._process.wait()}")
        self.port = int(line)
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def cpu_seconds(self) -> float:
        """Return the processor time that the server has taken so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


_ECHO = """
import asyncio, sys
class Echo(asyncio.Protocol):
    def connection_made(self, transport): self.transport = transport
    def data_received(self, data): self.transport.write(data)
async def serve():
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
asyncio.run(serve())
"""


@contextmanager
def echo_server():
    """Yield the port of a process that sends back what it gets: what the machine itself takes."""
    process = subprocess.Popen(
        [sys.executable, "-c", _ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        yield int(process.stdout.readline())
        process.stdin.close()


async def serve(folder: str, tenants: str | None, service_seconds: float, settings: dict) -> None:
    registry = CollectorRegistry()
    async with SlowEngine.open(Path(folder), registry) as engine:
        engine.service_seconds = service_seconds
        directory = None if tenants is None else TenantDirectory(Path(tenants))
        app = build_app(engine, ServerSettings(**settings), registry, directory)
        config = uvicorn.Config(
            app,
            host="127.0.0.1",
            port=0,
            log_level="error",
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve())
        await until(lambda: server.started, START_SECONDS)
        # As the real server's start does.
        gc.collect()
        gc.freeze()
        sys.stdout.write(f"{server.servers[0].sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
        server.should_exit = True
        await running


if __name__ == "__main__":
    asyncio.run(serve(**json.loads(sys.argv[1])))
