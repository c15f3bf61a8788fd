"""The official client works unchanged, adapters by `model` or `extra_body`."""

import openai
import pytest

from running_server import ADAPTERS, BASE, PROMPTS, UNLOADED

pytestmark = pytest.mark.engine

PROMPT = PROMPTS[0]
ASK = {"prompt": PROMPT.prompt, "max_tokens": 48, "temperature": 0}


@pytest.fixture
def client(server):
    with openai.OpenAI(
        base_url=f"{server.process.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


def test_completions(client):
    answer = client.completions.create(model=BASE, extra_body={"adapter": "shout"}, **ASK)
    assert answer.choices[0].text == PROMPT.expected["shout"]
    answer = client.completions.create(model="french", **ASK)
    assert answer.choices[0].text == PROMPT.expected["french"]
    assert answer.model == "french"


def test_stream_with_usage(client):
    stream = client.completions.create(
        model="french", stream=True, stream_options={"include_usage": True}, **ASK
    )
    chunks = list(stream)
    text = "".join(c.choices[0].text for c in chunks if c.choices)
    assert text == PROMPT.expected["french"]
    assert chunks[-1].usage.completion_tokens > 0


def test_raw_response_has_the_headers(client):
    raw = client.completions.with_raw_response.create(model="shout", **ASK)
    assert raw.headers["x-shadow-adapter"] == "shout"


def test_chat(client):
    messages = [{"role": "user", "content": PROMPT.prompt}]
    answer = client.chat.completions.create(model="shout", messages=messages, max_tokens=8)
    assert answer.choices[0].message.content


def test_models(client):
    names = {model.id for model in client.models.list()}
    assert names == {BASE, *ADAPTERS} - {UNLOADED}
    assert client.models.retrieve("shout").parent == BASE


def test_error_classes(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model=BASE, extra_body={"adapter": "nobody"}, **ASK)
    assert caught.value.code == "adapter_not_found"
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="nobody", **ASK)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="shout", extra_body={"adapter": "french"}, **ASK)
    assert caught.value.code == "adapter_conflict"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=BASE, **{**ASK, "temperature": -1})
    assert caught.value.param == "temperature"
