"""Debian's Prometheus: `promtool check metrics`, and a private server that scrapes one address."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from running_server import free_port

START_SECONDS = 60
SCRAPE_SECONDS = 1
_POLL_SECONDS = 0.1

_CONFIG = """\
global: {{scrape_interval: {interval}s, scrape_timeout: {interval}s}}
scrape_configs:
  - job_name: shadowserve
    {authorization}
    static_configs: [{{targets: ["{target}"]}}]
"""


def find_program(name: str) -> str:
    """Return the path of `prometheus` or `promtool`."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(
            f"no {name}; run .ci/services.sh, or: apt-get install prometheus", pytrace=False
        )
    return found


def check_metrics(text: str) -> list[str]:
    """Return what `promtool check metrics` finds in an exposition, one finding a line; `<series> <finding>`."""
    result = subprocess.run(
        [find_program("promtool"), "check", "metrics"],
        input=text,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    # 3 is its word for findings; anything else means that it could not read the text.
    assert result.returncode in (0, 3), result.stderr
    return [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]


@dataclass
class PrometheusServer:
    """A running Prometheus.

    Attributes:
        url: of its API.
    """

    url: str

    def query(self, expression: str) -> list[dict]:
        """Return the samples of an instant query; fails on an expression that does not parse."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30)
        body = answer.json()
        assert body["status"] == "success", (expression, body)
        return body["data"]["result"]

    def wait_for(self, expression: str, within_seconds: float = 60.0) -> list[dict]:
        """Return the samples of a query as soon as it has any."""
        deadline = time.monotonic() + within_seconds
        while not (found := self.query(expression)):
            assert time.monotonic() < deadline, f"no data for {expression}: {self.targets()}"
            time.sleep(_POLL_SECONDS)
        return found

    def targets(self) -> list[dict]:
        """Return what it scrapes, with the last error."""
        answer = httpx.get(f"{self.url}/api/v1/targets", timeout=30).json()
        return answer["data"]["activeTargets"]


@contextmanager
def running_prometheus(target: str, key: str | None = None) -> Iterator[PrometheusServer]:
    """Run a server that scrapes `/metrics` of `target` (`host:port`) every second.

    Args:
        target: the server to scrape.
        key: an admin's, for a server with tenants.
    """
    with tempfile.TemporaryDirectory(prefix="shadow-prometheus-") as name:
        folder = Path(name)
        authorization = f"authorization: {{credentials: {key}}}" if key else ""
        config = folder / "prometheus.yml"
        config.write_text(
            _CONFIG.format(interval=SCRAPE_SECONDS, authorization=authorization, target=target)
        )
        port = free_port()
        command = ["setpriv", "--pdeathsig", "TERM", "--", find_program("prometheus")]
        command += [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address=127.0.0.1:{port}"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            server = PrometheusServer(f"http://127.0.0.1:{port}")
            _wait(server, process, folder / "log")
            yield server
        finally:
            process.terminate()
            process.wait(30)


def _wait(server: PrometheusServer, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if httpx.get(f"{server.url}/-/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"Prometheus did not start: {log.read_text()}", pytrace=False)
        time.sleep(_POLL_SECONDS)
