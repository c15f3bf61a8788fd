"""Keys: taken from the command line before anybody looks, and in no output."""

import subprocess
import sys
from pathlib import Path

import pytest

from shadow_server.cli import main
from shadow_server.command.connection import connect, take_key


@pytest.mark.parametrize(
    ("words", "rest", "key"),
    [
        (["adapters", "list"], ["adapters", "list"], None),
        (["adapters", "list", "--key", "k", "--json"], ["adapters", "list", "--json"], "k"),
        (["top", "--key=k"], ["top"], "k"),
        (["chat", "--key", "k", "--", "--key", "text"], ["chat", "--", "--key", "text"], "k"),
        (["chat", "--key"], ["chat", "--key"], None),
        (["adapters", "list", "--key", "old", "--key", "new"], ["adapters", "list"], "new"),
        (["top", "--key=a", "--key", "b", "--key=c"], ["top"], "c"),
        (
            ["tenants", "rotate", "a", "--key", "id"],
            ["tenants", "rotate", "a", "--key", "id"],
            None,
        ),
        ([], [], None),
    ],
)
def test_the_key_of_a_command_line(words, rest, key):
    assert take_key(words) == (rest, key)


def test_an_address_without_a_path():
    assert repr(connect("http://x:1/")) == "Client('http://x:1')"


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except FileNotFoundError:
        return []


def test_a_key_leaves_the_process_list():
    # A server that never answers keeps the command running while its command line is looked at.
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        words = ["adapters", "list", "--key", "sk-secret", "--url", url]
        process = subprocess.Popen([sys.executable, "-m", "shadow_server", *words])
        try:
            listener.settimeout(30)
            connection, _ = listener.accept()
            with connection:
                sent = connection.recv(1 << 16).lower()
                seen = command_line(process.pid)
        finally:
            process.kill()
            process.wait()
    assert b"authorization: bearer sk-secret" in sent
    assert b"list" in seen
    assert not any(b"secret" in word for word in seen)


def test_a_folder_is_not_searched_for_programs_that_get_the_key(tmp_path):
    package = tmp_path / "shadow_server"
    package.mkdir()
    (package / "__init__.py").write_text("print('planted')")
    (tmp_path / "typing.py").write_text("print('planted')")
    code = "from shadow_server.cli import main; main()"
    words = ["adapters", "list", "--key", "sk-secret", "--url", "http://127.0.0.1:1"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, ""), done.stderr


def test_a_line_end_behind_the_key_is_none_of_it(monkeypatch, tmp_path):
    (tmp_path / "key").write_text("sk-a\r\nmore")
    for made in (connect(key="sk-a\n"), connect(key_file=tmp_path / "key")):
        assert made._session._http.headers["authorization"] == "Bearer sk-a"
    assert "authorization" not in connect(key="\n")._session._http.headers


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "ftp://x", "http://a\x1b"])
def test_a_wrong_address_is_a_wrong_command_line(url, capsys):
    assert main(["adapters", "list", "--url", url]) == 2


@pytest.mark.parametrize(
    ("words", "longest_seconds"),
    [
        (["adapters", "list"], 30),
        (["adapters", "wait", "a"], 30),
        (["doctor"], 10),
        (["top"], 10),
        (["chat", "hi"], 600),
        (["adapters", "unload", "a"], 600),
        (["adapters", "pin", "a"], 600),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_how_long_a_server_may_be_silent(monkeypatch, words, longest_seconds):
    import httpx

    seen = []

    def send(self, request):
        seen.append(request.extensions["timeout"]["read"])
        raise httpx.ConnectError("nobody")

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", send)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    main(words)
    assert set(seen) == {longest_seconds}
