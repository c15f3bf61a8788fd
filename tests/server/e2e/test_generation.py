"""Completions and chat of a real engine: the right adapter answers, in every spelling and form."""

import json
import random
import re

import pytest

from fake_server import error_of
from running_server import ADAPTERS, BASE, GREEDY, PROMPTS, UNLOADED, text_of

pytestmark = pytest.mark.engine

PROMPT = PROMPTS[0]
LOADED = [name for name in ADAPTERS if name != UNLOADED]


def test_every_adapter_does_its_task_and_the_base_does_none(server):
    for name in LOADED:
        answer = server.complete(adapter=name)
        assert text_of(answer) == PROMPT.expected[name]
        assert answer.json()["model"] == name
        assert answer.headers["x-shadow-adapter"] == name
    answer = server.complete()
    assert text_of(answer) not in PROMPT.expected.values()
    assert answer.json()["model"] == BASE
    assert "x-shadow-adapter" not in answer.headers


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "shout"},
        {"model": f"{BASE}:shout"},
        {"model": BASE, "adapter": "shout"},
        {"model": "shout", "adapter": "shout"},
        {"model": "shout", "adapter": None},
    ],
)
def test_every_spelling_names_the_adapter(server, fields):
    answer = server.client.post(
        "/v1/completions", json={"prompt": PROMPT.prompt, **GREEDY, **fields}
    )
    assert text_of(answer) == PROMPT.expected["shout"]


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"model": "shout", "adapter": "french"}, 400, "adapter_conflict"),
        ({"adapter": "nobody"}, 404, "adapter_not_found"),
        ({"model": f"{BASE}:nobody"}, 404, "adapter_not_found"),
        ({"model": "nobody"}, 404, "model_not_found"),
        ({"adapter": "shout@99"}, 404, "adapter_not_found"),
        ({"model": "shout@99"}, 404, "model_not_found"),
    ],
)
def test_names_that_answer_nothing(server, fields, status, code):
    answer = server.client.post("/v1/completions", json={"prompt": "x", **GREEDY, **fields})
    assert answer.status_code == status
    assert error_of(answer)["code"] == code


async def test_canary_every_row_of_a_mixed_burst_gets_its_own_adapter(server):
    rng = random.Random(7)
    rows = [(rng.choice(PROMPTS), rng.choice([*LOADED, None])) for _ in range(120)]
    base_texts = {p.prompt: text_of(server.complete(p.prompt)) for p in PROMPTS}
    answers = await server.burst([{"prompt": p.prompt, "adapter": a, **GREEDY} for p, a in rows])
    for (prompt, adapter), answer in zip(rows, answers, strict=True):
        expected = base_texts[prompt.prompt] if adapter is None else prompt.expected[adapter]
        assert text_of(answer) == expected
        assert answer.headers.get("x-shadow-adapter") == adapter
    assert len({a for _, a in rows}) == len(LOADED) + 1


def test_stream_carries_the_same_text_headers_and_usage(server):
    body = {"stream": True, "stream_options": {"include_usage": True}}
    answer = server.complete(adapter="french", **body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-shadow-adapter"] == "french"
    assert answer.headers["x-shadow-adapter-digest"].startswith("sha256:")
    events = [e.removeprefix("data: ") for e in answer.text.strip().split("\n\n")]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert "".join(c["choices"][0]["text"] for c in chunks[:-1]) == PROMPT.expected["french"]
    assert {c["model"] for c in chunks} == {"french"}
    usage = chunks[-1]["usage"]
    assert chunks[-1]["choices"] == []
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert (
        server.complete(adapter="french").json()["usage"]["completion_tokens"]
        == (usage["completion_tokens"])
    )


def test_token_id_prompts_answer_as_text_prompts_do(server):
    tokens = server.client.post("/tokenize", json={"prompt": PROMPT.prompt}).json()["tokens"]
    assert text_of(server.complete(tokens, adapter="shout")) == PROMPT.expected["shout"]
    answer = server.complete([tokens, tokens], adapter="shout")
    assert [c["text"] for c in answer.json()["choices"]] == [PROMPT.expected["shout"]] * 2
    back = server.client.post("/detokenize", json={"tokens": tokens, "adapter": "shout"})
    assert back.json()["prompt"].strip() == PROMPT.prompt.strip()


def test_echo_and_logprobs_differ_by_adapter(server):
    fields = {"echo": True, "logprobs": 2, "max_tokens": 1}
    adapter, base = (server.complete(adapter=a, **fields).json() for a in ("shout", None))
    for answer in (adapter, base):
        logprobs = answer["choices"][0]["logprobs"]
        assert answer["choices"][0]["text"].startswith(PROMPT.prompt)
        assert logprobs["token_logprobs"][0] is None
        num_tokens = answer["usage"]["total_tokens"]
        assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == num_tokens
        assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    last = [a["choices"][0]["logprobs"]["token_logprobs"][1:] for a in (adapter, base)]
    assert max(abs(x - y) for x, y in zip(*last, strict=True)) > 0.1


def test_several_choices_and_seeds(server):
    answer = server.complete(adapter="shout", n=3, temperature=1.0, seed=5)
    texts = [c["text"] for c in answer.json()["choices"]]
    assert len(texts) == 3
    again = server.complete(adapter="shout", n=3, temperature=1.0, seed=5)
    assert [c["text"] for c in again.json()["choices"]] == texts


def test_chat_takes_the_adapter_and_text_parts(server):
    def chat(content, **fields):
        body = {"messages": [{"role": "user", "content": content}], **GREEDY, **fields}
        answer = server.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer

    plain = chat(PROMPT.prompt, adapter="shout")
    parts = chat([{"type": "text", "text": PROMPT.prompt}], adapter="shout")
    assert plain.headers["x-shadow-adapter"] == parts.headers["x-shadow-adapter"] == "shout"
    texts = [a.json()["choices"][0]["message"]["content"] for a in (plain, parts)]
    assert texts[0] == texts[1]
    base = chat(PROMPT.prompt).json()
    assert base["model"] == BASE
    assert base["choices"][0]["message"]["content"] != texts[0]


def test_an_adapter_named_as_a_content_part_answers_only_when_asked(server):
    assert server.load("text", ADAPTERS["shout"]).status_code == 201
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "the fox"}]}]}
    answer = server.client.post("/v1/chat/completions", json={**body, **GREEDY})
    assert answer.json()["model"] == BASE
    assert "x-shadow-adapter" not in answer.headers


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": "many"},
        {"max_tokens": -1},
        {"max_tokens": 10**30},
        {"temperature": -1},
        {"top_p": 2},
        {"n": 0},
        {"logprobs": 10_000},
        {"logprobs": -7},
        {"stop": [1, 2]},
        {"stop": ""},
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": [10**9]},
        {"prompt": [-1]},
        {"prompt": {"a": 1}},
        {"prompt": "\ud800"},
        {"prompt": "the fox " * 3000},
        {"cache_salt": ""},
        {"cache_salt": 5},
        {"seed": 10**40},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"99999999": 1}},
        {"stop_token_ids": [10**30]},
        {"allowed_token_ids": [10**9]},
        {"structured_outputs": {"regex": "("}},
        {"response_format": {"type": "nonsense"}},
        {"stream_options": {"include_usage": True}},
        {"truncate_prompt_tokens": -5},
        {"min_tokens": 10_000},
        {"prompt_embeds": "AAAA"},
        {"priority": "high"},
        {"vllm_xargs": 3},
        {"kv_transfer_params": 3},
    ],
)
def test_odd_fields_are_refused_or_harmless(server, fields):
    body = {"prompt": PROMPT.prompt, "max_tokens": 2, "adapter": "shout", **fields}
    # Dumped here: the client's own encoder refuses what the server must survive.
    answer = server.client.post(
        "/v1/completions", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert answer.status_code < 500, answer.text
    if answer.status_code != 200:
        error = error_of(answer)
        assert not re.search(r"/(home|root|tmp|usr|work)/", error["message"])
        assert "Traceback" not in error["message"]
    assert text_of(server.complete(adapter="shout")) == PROMPT.expected["shout"]
