"""HEALTHCHECK goes by readiness, and waits for its answer."""

import re
import runpy
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from dockerfile import read_stages
from shadow_server.generation_watch import ANSWER_SECONDS
from source_tree import ROOT

SCRIPT = ROOT / ".docker/healthcheck.py"


@pytest.fixture
def server():
    """Serve a status on /health/ready; yields a setter and the port."""

    class Handler(BaseHTTPRequestHandler):
        status = 200

        def do_GET(self):
            self.send_response(self.status if self.path == "/health/ready" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield Handler, running.server_port
        running.shutdown()
        thread.join()


def check(port: int) -> int:
    command = [sys.executable, SCRIPT]
    return subprocess.run(command, env={"PORT": str(port)}, check=False).returncode


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (404, 1)])
def test_ready_is_healthy_and_nothing_else_is(server, status, code):
    handler, port = server
    handler.status = status

    assert check(port) == code


def test_nobody_there_is_not_healthy():
    assert check(9) == 1


def test_every_timeout_is_longer_than_what_it_waits_for():
    script_seconds = runpy.run_path(str(SCRIPT))["TIMEOUT_SECONDS"]
    _, stages = read_stages(ROOT / "Dockerfile")
    checks = [check.text for stage in stages for check in stage.all("HEALTHCHECK")]
    image_seconds = [int(re.search(r"--timeout=(\d+)s", check)[1]) for check in checks]

    assert script_seconds >= 2 * ANSWER_SECONDS
    assert len(image_seconds) == 2
    # A busy machine takes a second or two to start Python.
    assert min(image_seconds) >= script_seconds + 3
