"""What `doctor` finds: every fault is made here once, and each has something to try."""

import json
import socket
import subprocess
from importlib import metadata

import httpx
import pytest

from shadow_client.testing import MockServer
from shadow_server.cli import main
from shadow_server.command import checkup
from shadow_server.command.checkup import Status
from shadow_server.command.server_checkup import check_server


@pytest.fixture
def engine(monkeypatch):
    """Return a function that says which engine is installed."""

    def engine(name):
        monkeypatch.setattr(checkup, "is_cpu_engine", lambda: name == "cpu")

    return engine


@pytest.fixture
def smi(monkeypatch):
    """Return a function that says what nvidia-smi prints, or how it fails."""

    def smi(answer):
        def run(command, **_):
            if isinstance(answer, Exception):
                raise answer
            return subprocess.CompletedProcess(command, 0, answer, "")

        monkeypatch.setattr(checkup.subprocess, "run", run)

    return smi


ABSENT = FileNotFoundError("nvidia-smi")


@pytest.mark.parametrize(
    ("name", "answer", "status", "detail"),
    [
        ("cpu", ABSENT, Status.OK, "needs none"),
        ("gpu", ABSENT, Status.FAILURE, "FileNotFoundError"),
        ("gpu", subprocess.TimeoutExpired("x", 1), Status.FAILURE, "TimeoutExpired"),
        ("gpu", "", Status.FAILURE, "lists none"),
        (
            "gpu",
            "NVIDIA H100, 575.57, 81559 MiB\n",
            Status.OK,
            "NVIDIA H100, driver 575.57, 81559 MiB",
        ),
        ("cpu", "NVIDIA H100, 575.57, 81559 MiB\n", Status.WARNING, "CPU engine"),
    ],
)
def test_gpu(engine, smi, name, answer, status, detail):
    engine(name)
    smi(answer)
    found = checkup.check_gpu()
    assert found.status is status
    assert detail in found.detail
    assert (found.hint is None) == (status is Status.OK)


def test_engine(monkeypatch):
    assert checkup.check_engine().status is Status.OK
    monkeypatch.setattr(metadata, "version", lambda name: "0.31.0")
    found = checkup.check_engine()
    assert found.status is Status.FAILURE
    assert "0.31.0" in found.detail


def test_plugin(monkeypatch):
    assert checkup.check_plugin().status is Status.OK
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    assert checkup.check_plugin().status is Status.FAILURE
    monkeypatch.setenv("VLLM_PLUGINS", "other,shadow_runtime")
    assert checkup.check_plugin().status is Status.OK
    monkeypatch.setattr(checkup.metadata, "entry_points", lambda group: [])
    assert checkup.check_plugin().status is Status.FAILURE


def test_kernels(engine, monkeypatch):
    engine("cpu")
    assert checkup.check_kernels().status is Status.OK
    engine("gpu")
    monkeypatch.setattr(checkup, "_has_source_library", lambda: False)
    assert checkup.check_kernels().status is Status.WARNING


def test_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        found = checkup.check_port(taken)
        assert (found.status, str(taken) in found.detail) == (Status.WARNING, True)
    assert checkup.check_port(taken).status is Status.OK


def test_state(tmp_path, monkeypatch):
    assert checkup.check_state(tmp_path / "new" / "folder").status is Status.OK
    (tmp_path / "file").write_text("")
    assert checkup.check_state(tmp_path / "file").status is Status.FAILURE
    monkeypatch.setattr(checkup.os, "access", lambda path, mode: False)
    assert checkup.check_state(tmp_path).status is Status.FAILURE


def test_state_without_room(tmp_path, monkeypatch):
    usage = checkup.shutil.disk_usage(tmp_path)._replace(free=5)
    monkeypatch.setattr(checkup.shutil, "disk_usage", lambda path: usage)
    assert checkup.check_state(tmp_path).status is Status.WARNING


def test_roots(tmp_path, monkeypatch):
    assert checkup.check_root(tmp_path).status is Status.OK
    assert checkup.check_root(tmp_path / "none").status is Status.FAILURE
    monkeypatch.setattr(checkup.os, "access", lambda path, mode: False)
    assert checkup.check_root(tmp_path).status is Status.FAILURE


def test_tenants_file(tmp_path):
    path = tmp_path / "tenants.json"
    assert checkup.check_tenants_file(path).status is Status.FAILURE
    path.write_text("{}")
    path.chmod(0o644)
    assert checkup.check_tenants_file(path).status is Status.WARNING
    path.chmod(0o600)
    assert checkup.check_tenants_file(path).status is Status.OK


def at(handler):
    server = MockServer()
    server.handle = handler
    return check_server(server.client(), "http://mock")


def test_a_server_that_answers():
    server = MockServer()
    server.publish("a")
    ready, adapters = check_server(server.client(), "http://mock")
    assert (ready.status, adapters.status) == (Status.OK, Status.OK)
    server.fail("not_ready", num_times=3)
    assert check_server(server.client(), "http://mock")[0].status is Status.FAILURE


def test_a_key_that_is_not_taken():
    server = MockServer(key="sk-right")
    inner = server.handle

    def handle(request):
        is_open = request.url.path.startswith("/health")
        return httpx.Response(200, json={}) if is_open else inner(request)

    server.handle = handle
    _, key = check_server(server.client(key="sk-wrong"), "http://mock")
    assert key.status is Status.FAILURE
    assert "sk-" not in f"{key}"


def test_another_program_at_the_address():
    (found,) = at(lambda _: httpx.Response(404, text="<html>"))
    assert found.status is Status.FAILURE


def refuse(request):
    raise httpx.ConnectError("refused")


def test_no_server():
    (found,) = at(refuse)
    assert found.status is Status.WARNING


def test_the_command(mock, tmp_path, capsys):
    words = ["doctor", "--port", "0", "--state-dir", str(tmp_path), "--json"]
    assert main(words) == 2  # a port is 1 to 65535
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        words[2] = str(probe.getsockname()[1])
    capsys.readouterr()
    status = main([*words, "--adapter-root", str(tmp_path / "none")])
    found = json.loads(capsys.readouterr().out)
    assert status == 1
    assert {f["what"] for f in found} >= {
        "vLLM",
        "plugin",
        "GPU",
        "port",
        "state",
        "root",
        "server",
    }
    assert all((f["hint"] is None) == (f["status"] == "ok") for f in found)
    assert main(words[:-1]) == 0
    assert "ok       plugin" in capsys.readouterr().out


def say_nothing(request):
    raise httpx.ReadTimeout("late")


def test_a_server_that_says_nothing():
    (found,) = at(say_nothing)
    assert found.status is Status.FAILURE
    assert "did not answer in time" in found.detail
