"""Adapters come and go on a running engine."""

import asyncio
import shutil

import httpx
import pytest

from fake_server import error_of
from running_server import ADAPTERS, BASE, BUSY_TOKENS, GREEDY, PROMPTS, UNLOADED, text_of

pytestmark = pytest.mark.engine

PROMPT = PROMPTS[0]


def put(server, name, source):
    """Copy a shipped adapter below the server's root."""
    folder = server.root / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ADAPTERS[source], folder)
    return folder


def test_load_answer_unload(server):
    assert error_of(server.complete(adapter=UNLOADED))["code"] == "adapter_not_found"
    loaded = server.load(UNLOADED, UNLOADED)
    assert loaded.status_code == 201
    assert text_of(server.complete(adapter=UNLOADED)) == PROMPT.expected[UNLOADED]
    assert server.load(UNLOADED, ADAPTERS[UNLOADED]).status_code == 200
    answer = server.unload(UNLOADED)
    assert (answer.status_code, answer.json()["deleted"]) == (200, True)
    assert error_of(server.complete(adapter=UNLOADED))["code"] == "adapter_not_found"
    again = server.load(UNLOADED, UNLOADED)
    assert again.json()["digest"] == loaded.json()["digest"]
    assert text_of(server.complete(adapter=UNLOADED)) == PROMPT.expected[UNLOADED]


def test_models_list_base_and_adapters(server):
    cards = {m["id"]: m for m in server.client.get("/v1/models").json()["data"]}
    assert cards[BASE]["parent"] is None
    for name in ADAPTERS:
        if name == UNLOADED:
            assert name not in cards
            continue
        card = cards[name]
        assert card["parent"] == BASE
        assert card["root"] == f"command line {ADAPTERS[name].name}"
        assert card["digest"].startswith("sha256:")
        assert (card["version"], card["state"], card["tenant"]) == (1, "RESIDENT", "default")
    assert {cards[n]["format"] for n in cards if n != BASE} == {"paper", "peft"}


def test_two_names_of_one_digest_live_and_die_apart(server):
    digest = server.client.get("/v1/adapters/shout").json()["digest"]
    assert server.load("twin", put(server, "twin", "shout")).json()["digest"] == digest
    both = [text_of(server.complete(adapter=name)) for name in ("shout", "twin")]
    assert both == [PROMPT.expected["shout"]] * 2
    assert server.unload("twin").status_code == 200
    assert text_of(server.complete(adapter="shout")) == PROMPT.expected["shout"]


def test_versions_roll_back_without_new_bytes(server):
    digests = []
    for source in ("shout", "french"):
        answer = server.load("versioned", put(server, "versioned", source))
        digests.append(answer.json()["digest"])
    shutil.rmtree(server.root / "versioned")
    assert text_of(server.complete(adapter="versioned")) == PROMPT.expected["french"]
    answer = server.client.post("/v1/adapters/versioned/rollback")
    assert (answer.status_code, answer.json()["digest"]) == (201, digests[0])
    late = server.complete(adapter="versioned")
    assert text_of(late) == PROMPT.expected["shout"]
    assert late.headers["x-shadow-adapter-digest"] == digests[0]
    assert late.headers["x-shadow-adapter-version"] == str(answer.json()["version"])
    cards = server.client.get("/v1/adapters/versioned/versions").json()["data"]
    assert [card["digest"] for card in cards][-3:] == [*digests, digests[0]]


def test_upload_validate_and_progress(server):
    files = [
        ("files", (path.name, path.read_bytes()))
        for path in sorted(ADAPTERS[UNLOADED].iterdir())
        if path.suffix in (".json", ".safetensors")
    ]
    report = server.client.post("/v1/adapters/validate", files=files).json()
    assert (report["is_valid"], report["error"]) == (True, None)
    assert report["tensors"]
    assert all(tensor["is_finite"] for tensor in report["tensors"])
    fields = {"name": "uploaded", "stream": "true"}
    answer = server.client.post("/v1/adapters", data=fields, files=files)
    names = [line[7:] for line in answer.text.splitlines() if line.startswith("event: ")]
    assert names == ["reading", "validated", "loading", "registered", "resident", "published"]
    assert answer.text.endswith("data: [DONE]\n\n")
    assert server.client.get("/v1/adapters/uploaded").json()["digest"] == report["digest"]
    assert text_of(server.complete(adapter="uploaded")) == PROMPT.expected[UNLOADED]


def test_pin_keeps_an_adapter_in_its_slot(server):
    answer = server.client.post("/v1/adapters/shout/pin")
    assert (answer.status_code, answer.json()["pinned"]) == (200, True)
    assert server.client.get("/v1/adapters/shout").json()["level"] == "gpu"
    answer = server.client.post("/v1/adapters/shout/unpin")
    assert (answer.status_code, answer.json()["pinned"]) == (200, False)


async def test_hot_replacement_under_traffic_never_mixes_versions(server):
    server.load("hot", put(server, "hot", "shout"))
    digests = {server.client.get("/v1/adapters/hot").json()["digest"]: "shout"}
    body = {"prompt": PROMPT.prompt, "adapter": "hot", **GREEDY}
    seen = []
    is_over = asyncio.Event()

    async def traffic(client):
        while not is_over.is_set():
            seen.append(await client.post("/v1/completions", json=body))

    async with httpx.AsyncClient(base_url=server.process.url, timeout=60) as client:
        running = [asyncio.create_task(traffic(client)) for _ in range(4)]
        for source in ("french", "json", "shout", "french"):
            answer = await client.post(
                "/v1/adapters", json={"name": "hot", "path": str(put(server, "hot", source))}
            )
            assert answer.status_code == 201
            digests[answer.json()["digest"]] = source
            late = await client.post("/v1/completions", json=body)
            assert text_of(late) == PROMPT.expected[source]
        is_over.set()
        await asyncio.gather(*running)
    assert len(seen) >= 8
    for answer in seen:
        source = digests[answer.headers["x-shadow-adapter-digest"]]
        assert text_of(answer) == PROMPT.expected[source]
    assert len({a.headers["x-shadow-adapter-digest"] for a in seen}) >= 2


async def test_unload_waits_for_running_requests(server):
    server.load("busy", put(server, "busy", "shout"))
    body = {"prompt": "a", "adapter": "busy", "max_tokens": BUSY_TOKENS, "ignore_eos": True}
    async with httpx.AsyncClient(base_url=server.process.url, timeout=60) as client:
        running = asyncio.create_task(client.post("/v1/completions", json=body))
        await until(client, "busy", lambda entry: entry["num_running_requests"] == 1)
        answer = await client.delete("/v1/adapters/busy")
        assert answer.status_code == 200
        assert (await running).json()["usage"]["completion_tokens"] == BUSY_TOKENS
        assert (await client.get("/v1/adapters/busy")).status_code == 404


@pytest.mark.parametrize("is_stream", [True, False])
async def test_client_that_leaves_frees_the_engine_and_the_adapter(server, is_stream):
    body = {"prompt": "a", "adapter": "shout", "max_tokens": 1000, "ignore_eos": True, "n": 8}
    async with httpx.AsyncClient(base_url=server.process.url, timeout=60) as client:
        asking = client.stream("POST", "/v1/completions", json={**body, "stream": is_stream})

        async def ask():
            async with asking as answer:
                await answer.aread()

        leaving = asyncio.create_task(ask())
        await until(client, "shout", lambda entry: entry["num_running_requests"] == 1)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await until(client, "shout", lambda entry: entry["num_running_requests"] == 0)
    for _ in range(100):
        running = [v for k, v in server.samples().items() if "num_requests_running" in k]
        if sum(running) == 0:
            break
        await asyncio.sleep(0.1)
    assert sum(running) == 0


async def until(client, name, is_true):
    """Poll an adapter until its description satisfies `is_true`."""
    for _ in range(200):
        if is_true((await client.get(f"/v1/adapters/{name}")).json()):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{name} never came to the awaited state")


def test_vllm_names_for_load_and_unload(server):
    body = {"lora_name": "old-style", "lora_path": str(ADAPTERS[UNLOADED])}
    answer = server.client.post("/v1/load_lora_adapter", json=body)
    assert answer.text == "Success: LoRA adapter 'old-style' added successfully."
    assert text_of(server.complete(adapter="old-style")) == PROMPT.expected[UNLOADED]
    answer = server.client.post("/v1/unload_lora_adapter", json={"lora_name": "old-style"})
    assert answer.text == "Success: LoRA adapter 'old-style' removed successfully."
    assert error_of(server.complete(adapter="old-style"))["code"] == "adapter_not_found"
