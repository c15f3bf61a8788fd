"""Our own client and command line over the real CPU server: upload, chat, latencies, versions."""

import asyncio
import json
import time

import pytest

from running_server import ADAPTERS, PROMPTS, UNLOADED
from shadow_client import AsyncClient, Client
from shadow_client.error_code import AdapterBaseMismatchError, AdapterFileInvalidError
from shadow_server.cli import main

pytestmark = pytest.mark.engine

PROMPT, EXPECTED = PROMPTS[0].prompt, PROMPTS[0].expected
GREEDY = {"max_tokens": 48, "temperature": 0}


@pytest.fixture
def client(real):
    with Client(real.process.url) as client:
        yield client


@pytest.fixture
def shell(real, monkeypatch, capsys):
    monkeypatch.setenv("SHADOW_SERVER_URL", real.process.url)
    monkeypatch.delenv("SHADOW_SERVER_KEY", raising=False)

    def shell(*words):
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return int(status), captured.out, captured.err

    return shell


def test_an_upload_answers_and_leaves(client):
    stages = []
    made = client.adapters.upload(
        UNLOADED, ADAPTERS[UNLOADED], on_progress=lambda progress: stages.append(progress.stage)
    )
    assert (made.state, stages[0], stages[-1]) == ("RESIDENT", "uploading", "resident")
    with client.completions.stream(PROMPT, adapter=UNLOADED, **GREEDY) as stream:
        assert stream.read_text() == EXPECTED[UNLOADED]
        assert stream.info.adapter_digest == made.digest
        assert stream.usage.completion_tokens > 1
    assert client.adapters.delete(UNLOADED).name == UNLOADED


def total(real, name):
    """Return the sum of a series' samples."""
    return sum(n for k, n in real.samples().items() if k.startswith(f"{name}{{"))


def test_leaving_a_stream_early_ends_the_servers_work(real, client):
    before = total(real, "vllm:generation_tokens_total")
    with client.completions.stream("a", max_tokens=900, extra={"ignore_eos": True}) as stream:
        next(stream)
    deadline = time.monotonic() + 30
    while total(real, "vllm:num_requests_running") > 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert 0 < total(real, "vllm:generation_tokens_total") - before < 900


async def test_a_mixed_batch(real):
    names = [name for name in ADAPTERS if name != UNLOADED]
    async with AsyncClient(real.process.url) as client:
        asked = [client.completions.create(PROMPT, adapter=name, **GREEDY) for name in names]
        answers = await asyncio.gather(*asked)
    assert [answer.text for answer in answers] == [EXPECTED[name] for name in names]
    assert [answer.info.adapter for answer in answers] == names


def test_bad_adapters_are_refused_with_their_class(client, tmp_path):
    report = client.adapters.validate_upload(ADAPTERS["french"])
    assert report.is_valid
    assert report.slot_bytes > 0
    cut = tmp_path / "cut"
    cut.mkdir()
    for file in ADAPTERS["french"].iterdir():
        (cut / file.name).write_bytes(file.read_bytes())
    tensors = cut / "shadow_adapter.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    with pytest.raises((AdapterFileInvalidError, AdapterBaseMismatchError)) as caught:
        client.adapters.upload("cut", cut)
    assert caught.value.status == 422
    assert client.adapters.validate_upload(cut).error.code == caught.value.code


def test_the_command_line(shell):
    status, out, _ = shell("adapters", "load", UNLOADED, ADAPTERS[UNLOADED], "--json")
    assert (status, json.loads(out)["state"]) == (0, "RESIDENT")
    status, out, _ = shell("chat", PROMPT, "--adapter", UNLOADED, "--temperature", "0", "--json")
    assert (status, json.loads(out)["adapter"]) == (0, UNLOADED)
    rows = {row["adapter"]: row for row in json.loads(shell("top", "--json")[1])}
    assert rows[UNLOADED]["num_requests"] >= 1  # since the start, earlier adapters of the name too
    assert rows[UNLOADED]["first_token_p50"] > 0
    assert rows[UNLOADED]["inter_token_p50"] > 0
    status, out, _ = shell("doctor", "--json")
    found = {finding["what"]: finding["status"] for finding in json.loads(out)}
    assert (found["vLLM"], found["plugin"], found["server"]) == ("ok", "ok", "ok")
    assert shell("adapters", "unload", UNLOADED)[0] == 0
    assert shell("adapters", "versions", UNLOADED)[0] == 5
