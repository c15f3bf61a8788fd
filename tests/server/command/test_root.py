"""The command line as a whole: what it loads, how fast, what the shell completes."""

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from shadow_server.cli import main
from shadow_server.command import root
from shadow_server.command.exit_code import MEANINGS, ExitCode

HEAVY = {"torch", "transformers", "vllm", "fastapi", "sqlalchemy", "shadow_runtime"}
START_SECONDS = 2.0
"""Generous: an import of torch alone takes longer, on any machine."""


def loaded_by(*words):
    code = (
        "import sys\n"
        "from shadow_server.cli import main\n"
        f"main({list(words)!r})\n"
        "sys.stderr.write('LOADED ' + ' '.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stderr.partition("LOADED ")[2].split())


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["adapters", "--help"],
        ["adapters", "list", "--url", "http://127.0.0.1:1"],
        ["chat", "hi", "--url", "http://127.0.0.1:1"],
        ["top", "--once", "--url", "http://127.0.0.1:1"],
    ],
    ids=" ".join,
)
def test_light_commands_load_nothing_heavy(words):
    loaded = loaded_by(*words)
    assert "typer" in loaded
    assert loaded & HEAVY == set()


def test_help_is_there_at_once():
    best = min(_start_seconds() for _ in range(3))
    assert best < START_SECONDS


def _start_seconds():
    began = time.perf_counter()
    command = [sys.executable, "-m", "shadow_server", "--help"]
    subprocess.run(command, capture_output=True, check=True, timeout=60)
    return time.perf_counter() - began


@pytest.mark.parametrize("words", [["tenants", "--help"], ["demo", "--help"]])
def test_commands_with_parsers_of_their_own_show_their_help(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    assert f"usage: shadowserve {words[0]}" in capsys.readouterr().out


def test_the_command_line_hands_them_over(capsys, monkeypatch, tmp_path):
    words = ["tenants", "list", "--tenants-file", str(tmp_path / "none"), "--json"]
    assert root.run(words) == main(words) == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell):
    environment = {"_SHADOWSERVE_COMPLETE": f"source_{shell}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-m", "shadow_server"],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )
    assert "shadowserve" in done.stdout
    assert "_SHADOWSERVE_COMPLETE" in done.stdout


def complete(*words):
    environment = {
        "_SHADOWSERVE_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["shadowserve", *words]),
        "COMP_CWORD": str(len(words)),
        "PATH": "/usr/bin:/bin",
        "SHADOW_SERVER_URL": "http://127.0.0.1:1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "shadow_server"],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )
    return done.stdout.split()


def test_completions_are_commands():
    assert complete("ad") == ["adapters"]
    assert "rollback" in complete("adapters", "ro")
    assert complete("adapters", "pin", "x") == []  # no server, no names, no noise


def test_names_are_completed_from_the_server(command_server, monkeypatch):
    from shadow_client import Client
    from shadow_server.command.completion import complete_adapter

    server, folder, keys = command_server
    (folder / "named").mkdir()
    (folder / "named" / "adapter.txt").write_text("named")
    with Client(server.url, keys["acme"]) as client:
        client.adapters.publish("named", "named")
        monkeypatch.setenv("SHADOW_SERVER_URL", server.url)
        monkeypatch.setenv("SHADOW_SERVER_KEY", keys["acme"])
        assert complete_adapter("na") == ["named"]
        assert complete_adapter("x") == []
        client.adapters.delete("named")


def test_every_status_has_a_meaning():
    assert set(MEANINGS) == set(ExitCode)


CARD = {
    **{"name": "a", "tenant": "default", "version": 1, "digest": "sha256:00", "state": "RESIDENT"},
    **{"level": "gpu", "pinned": False, "created": 0, "format": "peft", "source": "x"},
    **{"num_parameters": 1, "stored_bytes": 1, "num_running_requests": 0},
}


@pytest.fixture
def list_url():
    """The address of a server with as many adapters as the first part of the path says."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = json.dumps({"data": [CARD] * int(self.path.split("/")[1])}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("num_adapters", [1, 3000], ids=["at the end", "in between"])
def test_a_reader_that_has_enough_is_no_failure(list_url, num_adapters):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "shadow_server", "adapters", "list"]
    with os.fdopen(writing) as pipe:
        done = subprocess.run(
            [*command, "--url", f"{list_url}/{num_adapters}"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_ctrl_c_has_a_status_of_its_own():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        # A suite that was started in the background ignores Ctrl-C, and so would what it starts.
        heard = ["env", "--default-signal=INT"]
        command = [*heard, sys.executable, "-m", "shadow_server", "adapters", "list", "--url", url]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        silent.settimeout(30)
        connection, _ = silent.accept()
        with connection:
            connection.recv(1 << 16)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (ExitCode.INTERRUPTED, b"")
    assert b"Traceback" not in err


def test_another_program_at_the_address(list_url, capsys):
    assert main(["adapters", "versions", "a", "--url", f"{list_url}/1"]) == ExitCode.UNREACHABLE
    assert "try: --url" in capsys.readouterr().err


def test_a_servers_message_moves_no_cursor(mock, monkeypatch, capsys):
    import httpx

    error = {"message": "tensor '\x1b[2J'", "code": "adapter_invalid"}
    mock.handle = lambda _: httpx.Response(422, json={"error": error})
    assert main(["adapters", "list"]) == ExitCode.INVALID
    assert r"tensor '\x1b[2J' (adapter_invalid)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "variables",
    [{"SHADOW_SERVER_URL": "localhost:8000"}, {"SHADOW_SERVER_KEY": "two words"}],
    ids=lambda variables: next(iter(variables)),
)
def test_completion_of_a_wrong_environment_is_empty(monkeypatch, variables):
    from shadow_server.command.completion import complete_adapter

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert complete_adapter("a") == []
