"""The server against its own OpenAPI document: every operation, valid and invalid requests, no 5xx."""

import asyncio
import socket
import threading

import httpx
import pytest
import requests
import uvicorn
from prometheus_client import CollectorRegistry

from schema_fuzz import CHECKS, NEGATIVE_CHECKS, checks_of, fuzz_settings, schema_of
from shadow_server.app import build_app
from shadow_server.engine import RegistrySettings
from shadow_server.fake_engine import FakeEngine
from shadow_server.openapi import build_document
from shadow_server.operation import OPERATIONS
from shadow_server.settings import ServerSettings

pytestmark = pytest.mark.slow

EXAMPLES = 200


class LoopbackServer:
    """The fake engine's application behind a real socket, on a thread with a loop of its own."""

    def __init__(self, folder):
        self._folder = folder
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._server = None
        self._session = requests.Session()
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def check(self, case, checks):
        """Send one request and check its answer."""
        case.call_and_validate(
            base_url=self.url, session=self._session, checks=checks_of(case.path, checks)
        )

    def __enter__(self):
        self._thread.start()
        assert self._is_ready.wait(30)
        return self

    def __exit__(self, *exc_info):
        self._session.close()
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()

    async def _serve(self):
        root = self._folder / "adapters"
        root.mkdir()
        for name in ("math", "a", "0"):
            (root / name).mkdir()
            (root / name / "adapter.txt").write_text(name)
        settings = ServerSettings(
            adapter_roots=(str(root),), max_body_bytes=1 << 20, unload_wait_seconds=0.1
        )
        registry = CollectorRegistry()
        adapter_settings = RegistrySettings(adapter_wait_seconds=0.2)
        async with FakeEngine.open(self._folder / "state", registry, adapter_settings) as engine:
            app = build_app(engine, settings, registry)
            config = uvicorn.Config(app, log_config=None, lifespan="on", timeout_keep_alive=60)
            self._server = uvicorn.Server(config)
            self._is_ready.set()
            await self._server.serve(sockets=[self._socket])
            engine.adapters.check_integrity()


@pytest.fixture(scope="module")
def fuzzed_server(tmp_path_factory):
    with LoopbackServer(tmp_path_factory.mktemp("fuzz")) as server:
        yield server


DOCUMENT = build_document(FakeEngine.request_schemas())


@schema_of(DOCUMENT, "positive").parametrize()
@fuzz_settings(EXAMPLES)
def test_valid_requests(fuzzed_server, case):
    fuzzed_server.check(case, CHECKS)


# An operation without a body takes nothing that could be wrong: any text is a name.
WITH_BODY = {(each.path, each.method.lower()) for each in OPERATIONS if each.body}


def has_body(context):
    operation = context.operation
    return (operation.path, operation.method.lower()) in WITH_BODY


@schema_of(DOCUMENT, "negative").include(func=has_body).parametrize()
@fuzz_settings(EXAMPLES)
def test_invalid_requests(fuzzed_server, case):
    fuzzed_server.check(case, NEGATIVE_CHECKS)


def test_the_document_is_what_the_server_tells(fuzzed_server):
    assert httpx.get(f"{fuzzed_server.url}/openapi.json").json() == DOCUMENT
