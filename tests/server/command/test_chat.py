"""`shadowserve chat`: once, from a pipe, and a conversation."""

import io
import json

import httpx
import pytest

from shadow_server.cli import main


class Pipe(io.StringIO):
    def isatty(self):
        return False


class Keyboard(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def types(monkeypatch):
    """Return a function that types lines on a terminal."""

    def types(*lines):
        monkeypatch.setattr("sys.stdin", Keyboard("".join(f"{line}\n" for line in lines)))

    return types


def test_one_prompt(mock, capsys):
    mock.publish("support")
    words = ["chat", "hi there", "--adapter", "support", "--system", "be kind", "--max-tokens", "7"]
    assert main([*words, "--temperature", "0", "--seed", "3"]) == 0
    assert capsys.readouterr().out == "[support] hi there\n"
    body = mock.bodies[-1]
    assert body["messages"] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi there"},
    ]
    assert (body["max_tokens"], body["temperature"], body["seed"]) == (7, 0, 3)


def test_a_prompt_from_a_pipe(mock, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Pipe("from afar\n"))
    assert main(["chat"]) == 0
    assert capsys.readouterr().out == "[base] from afar\n"
    assert "temperature" not in mock.bodies[-1]


def test_for_programs(mock, capsys):
    digest = mock.publish("support")
    assert main(["chat", "hi", "--adapter", "support", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["text"], said["version"], said["digest"]) == ("[support] hi", 1, digest)
    assert said["usage"]["completion_tokens"] == 2


def test_a_conversation(mock, types, capsys):
    mock.publish("support")
    types("one", "two", "/adapter support", "three", "/reset", "four", "/adapter", "five", "/quit")
    assert main(["chat"]) == 0
    said = [(b.get("adapter"), len(b["messages"])) for b in mock.bodies]
    assert said == [(None, 1), (None, 3), ("support", 5), ("support", 1), (None, 3)]
    assert mock.bodies[1]["messages"][1] == {"role": "assistant", "content": "[base] one"}
    assert "[support] four" in capsys.readouterr().out


def test_a_refused_question_is_not_remembered(mock, types, capsys):
    types("/adapter nobody", "one", "/adapter", "two")
    assert main(["chat"]) == 0
    assert "(adapter_not_found)" in capsys.readouterr().err
    assert mock.bodies[-1]["messages"] == [{"role": "user", "content": "two"}]


def test_a_refused_prompt(mock, capsys):
    assert main(["chat", "hi", "--adapter", "nobody"]) == 5
    assert "adapter_not_found" in capsys.readouterr().err


def test_json_needs_a_prompt(mock, types):
    types()
    assert main(["chat", "--json"]) == 2


def test_over_the_server(shell, write_adapter):
    shell("adapters", "load", "talks", "--server-path", write_adapter("talks"))
    status, out, _ = shell("chat", "hi there", "--adapter", "talks")
    assert (status, out.split()[1:]) == (0, ["hi", "there"])
    said = json.loads(shell("chat", "hi", "--adapter", "talks@1", "--json")[1])
    assert said["adapter"] == "acme/talks"
    shell("adapters", "unload", "talks")


def test_nothing_from_a_pipe_is_no_prompt(mock, monkeypatch):
    monkeypatch.setattr("sys.stdin", Pipe("\n"))
    assert main(["chat"]) == 2
    assert mock.requests == []


def test_a_broken_connection_ends_the_answer_only(mock, types, capsys):
    inner = mock.handle

    def handle(request):
        if b"breaks" in request.content:
            raise httpx.ReadError("reset")
        return inner(request)

    mock.handle = handle
    types("one", "breaks", "two")
    assert main(["chat"]) == 0
    assert "broke the connection" in capsys.readouterr().err
    assert [message["content"] for message in mock.bodies[-1]["messages"]] == [
        *("one", "[base] one", "two"),
    ]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_models_escapes_reach_no_terminal(mock, monkeypatch, capsys, is_terminal):
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    assert main(["chat", "\x1b]52;c;cm0K\x07"]) == 0
    out = capsys.readouterr().out
    assert ("\x1b" in out) != is_terminal
    assert (r"\x1b]52;c;" in out) == is_terminal
