"""Both clients, behind one face, over a mock server and over a real one."""

import pytest

from blocking_client import blocking_client
from shadow_client import AsyncClient, Client
from shadow_client.testing import MockServer


@pytest.fixture(params=["sync", "async"])
def kind(request):
    return request.param


@pytest.fixture
def mock():
    return MockServer()


@pytest.fixture
def open_client(kind):
    """Return a context manager of a client of the mock server `server`, with options."""

    def open_client(server, **options):
        if kind == "sync":
            return server.client(**options)
        return blocking_client(lambda: server.async_client(**options))

    return open_client


@pytest.fixture
def client(mock, open_client):
    with open_client(mock) as client:
        yield client


@pytest.fixture(scope="session")
def real_server(tmp_path_factory):
    """Yield a server over the fake engine with sockets, its adapter root and the keys of its tenants."""
    from fake_tenants import write_tenant
    from loopback_server import LoopbackServer

    folder = tmp_path_factory.mktemp("client-server")
    root, tenants = folder / "adapters", folder / "tenants.json"
    root.mkdir()
    keys = {"acme": write_tenant(tenants, "acme"), "ops": write_tenant(tenants, "ops", "admin")}
    options = {"adapter_roots": [str(root)], "max_upload_bytes": 64 << 20}
    with LoopbackServer(folder / "state", tenants, **options) as server:
        yield server, root, keys


@pytest.fixture
def connect(real_server, kind):
    """Return a context manager of a client of the real server with a tenant's key."""
    server, _, keys = real_server

    def connect(tenant="acme"):
        if kind == "sync":
            return Client(server.url, keys[tenant])
        return blocking_client(lambda: AsyncClient(server.url, keys[tenant]))

    return connect


@pytest.fixture
def write_adapter(real_server):
    """Return a function that writes an adapter below the server's root and returns its folder."""
    root = real_server[1]

    def write(name, content=""):
        folder = root / name
        folder.mkdir(exist_ok=True)
        (folder / "adapter.txt").write_text(content or f"weights of {name}")
        return folder

    return write
