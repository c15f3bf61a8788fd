"""The `serve` command in a process of its own: started, waited for, stopped in order.

Runs in: the process that starts it, which imports neither torch nor vllm.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import httpx

_POLL_SECONDS = 0.25
_STOP_SECONDS = 20.0


class ServerProcessError(Exception):
    """The server did not start; the message holds the end of its log."""


class ServerProcess:
    """Starts the server, waits until it is ready, and stops it; use as a context manager.

    Ownership: the process runs in a session of its own, so a Ctrl-C in the terminal reaches only
    this side, which then stops the server in order.
    """

    def __init__(self, arguments: Sequence[str], host: str, port: int, log_path: Path) -> None:
        self.url = f"http://{host}:{port}"
        self._host, self._port = host, port
        self.log_path = log_path
        self._arguments = [*arguments, "--host", host, "--port", str(port)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ServerProcess:
        _check_port(self._host, self._port)
        # GiB of KV cache on a CPU engine; the default would take half of the machine's memory.
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", **os.environ}
        # -P: what the current folder holds is not imported.
        command = [sys.executable, "-P", "-m", "shadow_server", "serve", *self._arguments]
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

    @property
    def pid(self) -> int:
        """Process id of the started server."""
        if self._process is None:
            raise ServerProcessError("The server was not started.")
        return self._process.pid

    def wait_until_ready(self, limit_seconds: float) -> float:
        """Return the seconds it took until requests are served.

        Raises:
            ServerProcessError: the process ended first, or the limit passed.
        """
        started_at = time.monotonic()
        while time.monotonic() - started_at < limit_seconds:
            if self._process is None or self._process.poll() is not None:
                raise ServerProcessError(f"The server stopped while starting.\n{self._log_end()}")
            if self._is_ready():
                return time.monotonic() - started_at
            time.sleep(_POLL_SECONDS)
        raise ServerProcessError(f"Not ready after {limit_seconds:.0f} s.\n{self._log_end()}")

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
            raise ServerProcessError(
                f"Port {port} of {host} cannot be used ({error.strerror}); "
                "choose another with --port"
            ) from None
