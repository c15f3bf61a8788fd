"""The demo's server: the ordinary `serve` command in a process of its own.

Runs in: the demo's process, which imports neither torch nor vllm.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import httpx

from shadow_server.demo import demo_adapter_paths, demo_model_path

BASE_NAME = "demo"

_POLL_SECONDS = 0.25
_STOP_SECONDS = 20.0


class DemoServerError(Exception):
    """The server did not start; the message holds the end of its log."""


def serve_arguments(host: str, port: int) -> list[str]:
    """Return the words after `shadowserve serve` that serve the shipped demo."""
    adapters = demo_adapter_paths()
    options = {
        "--served-model-name": BASE_NAME,
        "--host": host,
        "--port": str(port),
        # The expected answers are the fp32 ones; a tiny model gains nothing from graphs.
        "--dtype": "float32",
        "--max-model-len": "1024",
        "--adapter-root": str(next(iter(adapters.values())).parent),
        "--gpu-memory-utilization": "0.3",
        "--shutdown-timeout": "5",
    }
    named = [word for name, path in adapters.items() for word in ("--adapter", f"{name}={path}")]
    flat = [word for option in options.items() for word in option]
    return [str(demo_model_path()), *flat, *named, "--enforce-eager"]


class DemoServer:
    """Starts the server, waits until it is ready, and stops it; use as a context manager.

    Ownership: the process runs in a session of its own, so a Ctrl-C in the terminal reaches only
    this side, which then stops the server in order.
    """

    def __init__(self, host: str, port: int, log_path: Path) -> None:
        self.url = f"http://{host}:{port}"
        self._host, self._port = host, port
        self.log_path = log_path
        self._arguments = serve_arguments(host, port)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DemoServer:
        _check_port(self._host, self._port)
        # GiB of KV cache on a CPU engine; the default would take half of the machine's memory.
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", **os.environ}
        command = [sys.executable, "-m", "shadow_server", "serve", *self._arguments]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def wait_until_ready(self, limit_seconds: float) -> float:
        """Return the seconds it took until requests are served.

        Raises:
            DemoServerError: the process ended first, or the limit passed.
        """
        started_at = time.monotonic()
        while time.monotonic() - started_at < limit_seconds:
            if self._process is None or self._process.poll() is not None:
                raise DemoServerError(f"The server stopped while starting.\n{self._log_end()}")
            if self._is_ready():
                return time.monotonic() - started_at
            time.sleep(_POLL_SECONDS)
        raise DemoServerError(f"Not ready after {limit_seconds:.0f} s.\n{self._log_end()}")

    def wait(self) -> int:
        """Wait until the server ends by itself and return its exit status."""
        return 0 if self._process is None else self._process.wait()

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def _log_end(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()[-15:]
        return "\n".join([*lines, f"The whole log is in {self.log_path}"])


def _check_port(host: str, port: int) -> None:
    # Another server on the port would answer the readiness probe in place of ours.
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DemoServerError(
                f"Port {port} of {host} cannot be used ({error.strerror}); "
                "choose another with --port"
            ) from None
