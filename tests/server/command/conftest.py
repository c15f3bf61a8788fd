"""The command line in this process, over a real server with the fake engine, and over a mock one."""

import pytest

from shadow_client.testing import MockServer
from shadow_server.cli import main


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("SHADOW_SERVER_URL", "SHADOW_SERVER_KEY", "VLLM_PLUGINS", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture(scope="session")
def command_server(tmp_path_factory):
    """Yield a server, its adapter root and the keys of its tenants."""
    from fake_tenants import write_tenant
    from loopback_server import LoopbackServer

    folder = tmp_path_factory.mktemp("command-server")
    root, tenants = folder / "adapters", folder / "tenants.json"
    root.mkdir()
    keys = {"acme": write_tenant(tenants, "acme"), "ops": write_tenant(tenants, "ops", "admin")}
    with LoopbackServer(folder / "state", tenants, adapter_roots=[str(root)]) as server:
        yield server, root, keys


@pytest.fixture
def shell(command_server, monkeypatch, capsys):
    """Return a function that runs a command as `acme`: gives its status, output and messages."""
    server, _, keys = command_server
    monkeypatch.setenv("SHADOW_SERVER_URL", server.url)
    monkeypatch.setenv("SHADOW_SERVER_KEY", keys["acme"])

    def shell(*words):
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "sk-" not in captured.out + captured.err
        return int(status), captured.out, captured.err

    return shell


@pytest.fixture
def write_adapter(command_server):
    root = command_server[1]

    def write(name, content=""):
        folder = root / name
        folder.mkdir(exist_ok=True)
        (folder / "adapter.txt").write_text(content or f"weights of {name}")
        return folder

    return write


@pytest.fixture
def mock(monkeypatch):
    """Return a mock server that the commands connect to."""
    from shadow_server.command import adapters, chat, doctor, top

    server = MockServer()
    for module in (adapters, chat, doctor, top):
        monkeypatch.setattr(module, "connect", lambda *_, **__: server.client())
    return server
