"""A real server over a canary base, as the end-to-end tests and the benchmarks of the adapters' life start it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from shadow_server.server_process import ServerProcess
from version_canary import CanaryShape, build_canary, build_canary_base

START_SECONDS = 300.0
START_NUMBER = 125
"""The canary that the server starts with, in both formats; their geometries are those of its slots."""

ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
CPU_OPTIONS = ("--dtype", "float32", "--enforce-eager", "--block-size", "32")


@dataclass
class CanaryServer:
    """A started server.

    Attributes:
        process: the server's process.
        base: its base model.
        root: a directory that adapters may be loaded from.
        state: where it keeps registry and store.
        tenants_file: None on a server without tenants.
    """

    process: ServerProcess
    base: Path
    root: Path
    state: Path
    tenants_file: Path | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return self.process.url

    def client(self, key: str | None = None) -> httpx.Client:
        """Return a blocking client, with a tenant's key."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, timeout=60, headers=headers)

    def pids(self) -> dict[str, int]:
        """Return process ids by role: `api`, `EngineCore`, `Worker`..."""
        found = {"api": self.process.pid}
        for pid in descendants(self.process.pid):
            name = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
            if name.startswith("VLLM::"):
                found[name.removeprefix("VLLM::")] = pid
        return found


@contextmanager
def canary_server(
    directory: Path,
    *options: str,
    shape: CanaryShape | None = None,
    formats: Sequence[str] = ("paper", "peft"),
    tenants_file: Path | None = None,
    engine_options: Sequence[str] = CPU_OPTIONS,
    base: Path | None = None,
) -> Iterator[CanaryServer]:
    """Write a base and the adapters to start with, serve them, stop.

    Args:
        directory: for all files of the server; a second server on it has the first one's state.
        options: of `shadowserve serve`, after the defaults.
        shape: of the base.
        formats: of the adapters to start with.
        tenants_file: of a server with tenants.
        engine_options: for the kind of engine.
        base: one that is there already.
    """
    root, state = directory / "root", directory / "state"
    words = _prepare(directory, base, shape, formats)
    if tenants_file is not None:
        words += ["--tenants-file", str(tenants_file)]
    words += ["--state-dir", str(state), *engine_options, *options]
    process = ServerProcess(words, "127.0.0.1", free_port(), directory / "server.log")
    with ExitStack() as stack:
        # Only the server inherits them: another engine with another number of threads rounds otherwise.
        with _variables(ENVIRONMENT):
            stack.enter_context(process)
        process.wait_until_ready(START_SECONDS)
        yield CanaryServer(process, Path(words[0]), root, state, tenants_file)


@contextmanager
def _variables(defaults: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that are not set, for as long as the block runs."""
    added = [name for name in defaults if name not in os.environ]
    os.environ.update({name: defaults[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _prepare(
    directory: Path, base: Path | None, shape: CanaryShape | None, formats: Sequence[str]
) -> list[str]:
    root = directory / "root"
    root.mkdir(parents=True, exist_ok=True)
    base = base or directory / "base"
    if not base.exists():
        build_canary_base(base, shape)
    words = [str(base), "--served-model-name", "canary", "--adapter-root", str(root)]
    words += ["--max-model-len", "1024", "--shutdown-timeout", "2"]
    for index, name in enumerate(formats):
        path = root / f"start-{name}"
        if not path.exists():
            build_canary(base, path, START_NUMBER - index, name)
        words += ["--adapter", f"start-{name}={path}"]
    return words


def create_tenant(tenants_file: Path, name: str, *options: str) -> str:
    """Add a tenant with the command line and return its key."""
    words = [sys.executable, "-m", "shadow_server", "tenants", "create", name]
    words += ["--tenants-file", str(tenants_file), *options]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes below `pid`; a child belongs to the thread that started it."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for t in threads for child in (t / "children").read_text().split()]
    return children + [deeper for child in children for deeper in descendants(child)]
