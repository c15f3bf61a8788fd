"""Keys: taken from the command line before anybody looks, and in no output."""

import subprocess
import sys
from pathlib import Path

import pytest

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
