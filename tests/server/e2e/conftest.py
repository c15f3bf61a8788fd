"""One real server for every end-to-end test: it starts once a session."""

import os

import pytest

from running_server import ENVIRONMENT, START_SECONDS, RunningServer, arguments, free_port
from shadow_server.server_process import ServerProcess


@pytest.fixture(scope="session")
def start_server(tmp_path_factory):
    """Return a function that makes an unstarted server process and its adapter root."""
    previous = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)

    def start(*options):
        folder = tmp_path_factory.mktemp("server")
        root = folder / "adapters"
        root.mkdir()
        words = [*arguments(root), *options]
        process = ServerProcess(words, "127.0.0.1", free_port(), folder / "server.log")
        return process, root

    yield start
    for name, value in previous.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def server(start_server):
    process, root = start_server()
    with process:
        process.wait_until_ready(START_SECONDS)
        running = RunningServer(process, root)
        yield running
        running.client.close()


@pytest.fixture(autouse=True)
def _leaves_the_server_as_it_was(request):
    """Unload what a test loaded; tests with a server of their own are left alone."""
    if "server" not in request.fixturenames:
        yield
        return
    server = request.getfixturevalue("server")
    before = {entry["name"]: entry["digest"] for entry in _entries(server)}
    yield
    for name in {entry["name"] for entry in _entries(server)} - before.keys():
        server.unload(name)
    assert {entry["name"]: entry["digest"] for entry in _entries(server)} == before


def _entries(server):
    return server.client.get("/v1/adapters").json()["data"]
