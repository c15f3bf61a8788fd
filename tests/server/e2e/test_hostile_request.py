"""Whatever one client sends, the engine lives on, nobody waits for it, and everybody else's answers stay right."""

import asyncio
import json
import time

import httpx
import pytest

from running_server import GREEDY, PROMPTS, text_of

pytestmark = pytest.mark.engine

VOCAB = 667

# Fields of one request over a valid one. Most are refused; some are odd but legal. None may cost anyone else a token.
HOSTILE = [
    {"prompt": tokens}
    for tokens in ([], [-1], [-5, 3], [VOCAB], [10**9], [2**31], [2**63], [[-1]], [1] * 5000)
] + [
    {"prompt": ""},
    {"n": 0},
    {"n": 10**9},
    {"n": 64, "max_tokens": 2},
    {"logprobs": 10**6},
    {"logprobs": -3},
    {"prompt_logprobs": 10**5},
    {"max_tokens": -1},
    {"max_tokens": 10**12},
    {"min_tokens": 99, "max_tokens": 3},
    {"temperature": -1},
    {"temperature": 1e308},
    {"top_p": 0},
    {"top_k": -7},
    {"repetition_penalty": 0},
    {"seed": 2**70},
    {"stop": ["\0"] * 100},
    {"stop": [""]},
    {"stop_token_ids": [-1]},
    {"stop_token_ids": [2**40]},
    {"logit_bias": {"999999": 5}},
    {"logit_bias": {"-1": 5}},
    {"logit_bias": {"5": 1e9}},
    {"allowed_token_ids": []},
    {"allowed_token_ids": [10**7]},
    {"bad_words": ["", ""]},
    {"truncate_prompt_tokens": -9},
    {"cache_salt": ""},
    {"cache_salt": 5},
    {"cache_salt": "x" * 100_000},
    {"priority": 2**40},
    {"request_id": "x" * 100_000},
    {"prompt_embeds": "AAAA"},
    {"structured_outputs": {"regex": "("}},
    {"structured_outputs": [[], {"choice": 1}]},
    {"structured_outputs": "json"},
    {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "z"}},
        }
    },
    {"vllm_xargs": {"x": [1]}},
    {"kv_transfer_params": {"a": 1}},
    {"adapter": 5},
    {"adapter": "x" * 10_000},
    {"adapter": "french@"},
    {"adapter": "french@6b8e5fa4"},
    {"adapter": "../french"},
    {"adapter": "fr\0ench"},
    {"adapter": "french@0"},
    {"adapter": "french@-1"},
    {"adapter": "french@1@1"},
    {"adapter": "french@١"},
    {"adapter": f"french@{10**30}"},
    {"adapter": "default/"},
    {"adapter": "/french"},
    {"adapter": "a/b/french"},
    {"adapter": "DEFAULT/french"},
    {"adapter": "other/french"},
    {"vllm_xargs": {"shadow_tenant": "other", "shadow_weight": 1e300, "shadow_tag": "x"}},
    {"vllm_xargs": {"shadow_weight": -1}},
    {"model": ["demo"]},
]
NOT_JSON = [b"", b"{", b"[]", b"null", b'{"a":1,"a":2}', b"\xff\xfe", b"[" * 100_000]
LONGEST_WAIT_SECONDS = 15.0


async def answer_until(is_over, client, waits):
    """Ask for one known answer again and again; return the wrong ones."""
    wrong = []
    prompt = PROMPTS[0]
    while not is_over.is_set() or len(waits) < 5:
        started = time.monotonic()
        body = {"prompt": prompt.prompt, "adapter": "french", **GREEDY}
        response = await client.post("/v1/completions", json=body)
        waits.append(time.monotonic() - started)
        if response.status_code != 200 or text_of(response) != prompt.expected["french"]:
            wrong.append(response.text)
    return wrong


@pytest.mark.parametrize("adapter", ["french", "passive", None])
async def test_hostile_requests_harm_nobody(server, adapter):
    is_over, waits = asyncio.Event(), []
    async with httpx.AsyncClient(base_url=server.process.url, timeout=120) as client:
        good = asyncio.create_task(answer_until(is_over, client, waits))
        answers = []
        for fields in HOSTILE:
            body = {"prompt": "a", "max_tokens": 4, "adapter": adapter, **fields}
            answers.append((fields, await client.post("/v1/completions", json=body)))
        for raw in NOT_JSON:
            headers = {"content-type": "application/json"}
            response = await client.post("/v1/completions", content=raw, headers=headers)
            answers.append(({"raw": raw[:20].hex()}, response))
        is_over.set()
        wrong = await good
    assert wrong == []
    assert max(waits) < LONGEST_WAIT_SECONDS
    failed = [(json.dumps(f)[:80], r.text) for f, r in answers if r.status_code >= 500]
    assert failed == []
    refused = [r.json()["error"] for _, r in answers if r.status_code >= 400]
    assert len(refused) > len(answers) // 2
    assert all(error["message"] and isinstance(error["code"], str) for error in refused)
    assert server.client.get("/health/ready").status_code == 200
