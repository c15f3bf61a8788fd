"""openai-python, unmodified: routes, streams, the class of every error that the README promises, and its own retries.

The same calls over the fake engine, which can be made to refuse anything, and over the real CPU server.
"""

import asyncio
import contextlib
import time

import openai
import pytest

from running_server import ADAPTERS, BASE, PROMPTS, UNLOADED

FAKE_BASE = "fake-base"
TALK = [{"role": "user", "content": "hi there"}]


@pytest.fixture
def connect(fake):
    """Return a function that makes a client with a tenant's key."""
    server, _, keys = fake
    with contextlib.ExitStack() as stack:

        def connect(tenant, max_retries=0):
            client = openai.OpenAI(
                base_url=f"{server.url}/v1",
                api_key=keys.get(tenant, tenant),
                max_retries=max_retries,
            )
            return stack.enter_context(client)

        yield connect


@pytest.fixture
def client(connect):
    return connect("plain")


@pytest.fixture
def publish(fake, client):
    """Return a function that publishes an adapter with openai-python's own transport."""
    root = fake[1]
    made = []

    def publish(name, content="", with_client=client):
        folder = root / name.replace("/", "-")
        folder.mkdir(exist_ok=True)
        (folder / "adapter.txt").write_text(content or f"weights of {name}")
        body = {"name": name, "path": folder.name}
        card = with_client.post("/adapters", body=body, cast_to=object)
        made.append((with_client, name))
        return card

    yield publish
    for with_client, name in made:
        with contextlib.suppress(openai.NotFoundError):
            with_client.delete(f"/adapters/{name}", cast_to=object)


def test_completions_name_an_adapter_in_two_ways(client, publish):
    card = publish("support")
    answer = client.completions.create(
        model=FAKE_BASE, prompt="hi", extra_body={"adapter": "support"}
    )
    assert answer.choices[0].text == f"[plain/support:{card['digest'][-4:]}] hi"
    assert client.completions.create(model="support", prompt="hi").choices == answer.choices
    base = client.completions.create(model=FAKE_BASE, prompt="hi", extra_body={"adapter": None})
    assert base.choices[0].text == "[base] hi"


def test_full_names_as_the_readme_has_them(connect, publish):
    publish("support")
    answer = connect("ops").completions.create(
        model=FAKE_BASE, prompt="hi", extra_body={"adapter": "plain/support"}
    )
    assert answer.choices[0].text.startswith("[plain/support:")


def test_streams_with_usage(client, publish):
    publish("support")
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.completions.create(model="support", prompt="hi there", **options))
    assert "".join(c.choices[0].text for c in chunks[:-1]).split()[1:] == ["hi", "there"]
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 3)


def test_chat_and_its_stream(client, publish):
    publish("support")
    whole = client.chat.completions.create(model="support", messages=TALK)
    text = whole.choices[0].message.content
    chunks = list(
        client.chat.completions.create(
            model=FAKE_BASE,
            messages=TALK,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"adapter": "support"},
        )
    )
    assert "".join(c.choices[0].delta.content for c in chunks[:-1]).split() == text.split()
    assert chunks[-1].usage.total_tokens == 4


def test_models(client, publish):
    publish("support")
    found = {model.id: model for model in client.models.list()}
    assert found.keys() == {FAKE_BASE, "support"}
    assert client.models.retrieve("support").parent == FAKE_BASE


def test_headers(client, publish):
    card = publish("support")
    raw = client.completions.with_raw_response.create(model="support", prompt="hi")
    assert raw.headers["x-shadow-adapter-digest"] == card["digest"]
    assert raw.parse().choices[0].text


def caught(call):
    with pytest.raises(openai.APIStatusError) as error:
        call()
    assert error.value.message
    assert error.value.request_id
    return error.value


@pytest.mark.parametrize(
    ("fields", "cls", "code", "param"),
    [
        ({"max_tokens": "x"}, openai.BadRequestError, "invalid_request", "max_tokens"),
        ({"extra_body": {"adapter": 3}}, openai.BadRequestError, "invalid_request", "adapter"),
        ({"extra_body": {"adapter": "no"}}, openai.NotFoundError, "adapter_not_found", "adapter"),
        ({"model": "no"}, openai.NotFoundError, "model_not_found", "model"),
        ({"extra_body": {"adapter": "a b"}}, openai.NotFoundError, "adapter_not_found", "adapter"),
    ],
)
def test_400_and_404(client, fields, cls, code, param):
    options = {"model": FAKE_BASE, "prompt": "hi"} | fields
    error = caught(lambda: client.completions.create(**options))
    assert type(error) is cls
    assert (error.code, error.param) == (code, param)


def test_400_for_two_adapters_at_once(client, publish):
    publish("a")
    publish("b")
    error = caught(
        lambda: client.completions.create(model="a", prompt="hi", extra_body={"adapter": "b"})
    )
    assert (type(error), error.code) == (openai.BadRequestError, "adapter_conflict")


def test_401(connect):
    error = caught(lambda: connect("sk-wrong").models.list())
    assert (type(error), error.code) == (openai.AuthenticationError, "invalid_api_key")


def test_403_and_409(client, publish):
    error = caught(lambda: client.get("../metrics", cast_to=object))
    assert (type(error), error.code) == (openai.PermissionDeniedError, "admin_required")
    publish("a", "one")
    body = {"name": "a", "path": "b", "can_replace": False}
    publish("b", "two")
    error = caught(lambda: client.post("/adapters", body=body, cast_to=object))
    assert (type(error), error.code) == (openai.ConflictError, "adapter_exists")


def test_422(publish):
    error = caught(lambda: publish("bad", "broken"))
    assert type(error) is openai.UnprocessableEntityError
    assert error.code == "adapter_tensor_invalid"


def test_429_of_a_quota_is_not_tried_again(connect, publish):
    tenant = connect("adapters", max_retries=2)
    publish("one", with_client=tenant)
    publish("two", with_client=tenant)
    began = time.monotonic()
    error = caught(lambda: publish("three", with_client=tenant))
    assert (type(error), error.code) == (openai.RateLimitError, "insufficient_quota")
    assert time.monotonic() - began < 5  # Retry-After says a minute


def test_429_of_a_rate_and_its_retry(connect):
    began = time.monotonic()
    error = caught(lambda: _until_refused(connect("slow")))
    assert (type(error), error.code) == (openai.RateLimitError, "rate_limit_exceeded")
    wait_seconds = int(error.response.headers["retry-after"])
    assert 1 <= wait_seconds <= 2
    # Without retries this would be refused as well: nothing comes back before the wait is over.
    again = connect("slow", max_retries=2).completions.create(model=FAKE_BASE, prompt="hi")
    assert again.choices[0].text == "[base] hi"
    assert time.monotonic() - began >= wait_seconds - 1  # the header is rounded up


def _until_refused(tenant):
    for _ in range(100):
        tenant.post("../tokenize", body={"prompt": "a"}, cast_to=object)


async def test_503_and_its_retry(fake):
    server, _, keys = fake

    def make(tenant, max_retries):
        return openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key=keys[tenant], max_retries=max_retries
        )

    async with make("plain", 0) as first, make("other", 0) as second, make("other", 5) as patient:
        # One runs, none waits: as long as the first one streams, the server is full.
        stream = await first.completions.create(
            model=FAKE_BASE, prompt=" ".join("abcdefgh"), max_tokens=8, stream=True
        )
        with pytest.raises(openai.InternalServerError) as error:
            await second.completions.create(model=FAKE_BASE, prompt="hi")
        assert (error.value.status_code, error.value.code) == (503, "server_overloaded")
        assert int(error.value.response.headers["retry-after"]) >= 1
        asked = asyncio.create_task(patient.completions.create(model=FAKE_BASE, prompt="hi"))
        assert [chunk async for chunk in stream]
        assert (await asked).choices[0].text == "[base] hi"


def test_an_error_inside_a_stream(client):
    stream = client.completions.create(
        model=FAKE_BASE, prompt="one fail two", stream=True, max_tokens=8
    )
    with pytest.raises(openai.APIError, match="boom"):
        list(stream)


ASK = {"prompt": PROMPTS[0].prompt, "max_tokens": 48, "temperature": 0}


@pytest.mark.engine
def test_the_real_server_answers_as_the_demo_does(real):
    url = f"{real.process.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        expected = PROMPTS[0].expected
        for name in set(ADAPTERS) - {UNLOADED}:
            answer = client.completions.create(model=BASE, extra_body={"adapter": name}, **ASK)
            assert answer.choices[0].text == expected[name]
        stream = client.completions.create(
            model="french", stream=True, stream_options={"include_usage": True}, **ASK
        )
        chunks = list(stream)
        assert "".join(c.choices[0].text for c in chunks if c.choices) == expected["french"]
        assert chunks[-1].usage.completion_tokens > 0
        talk = [{"role": "user", "content": ASK["prompt"]}]
        said = "".join(
            chunk.choices[0].delta.content or ""
            for chunk in client.chat.completions.create(
                model="shout", messages=talk, max_tokens=8, temperature=0, stream=True
            )
        )
        whole = client.chat.completions.create(
            model="shout", messages=talk, max_tokens=8, temperature=0
        )
        assert said == whole.choices[0].message.content != ""
        assert {m.id for m in client.models.list()} == {BASE, *ADAPTERS} - {UNLOADED}
        error = caught(
            lambda: client.completions.create(model=BASE, extra_body={"adapter": "no"}, **ASK)
        )
        assert (type(error), error.code) == (openai.NotFoundError, "adapter_not_found")
        error = caught(lambda: client.completions.create(model=BASE, **{**ASK, "temperature": -1}))
        assert (type(error), error.param) == (openai.BadRequestError, "temperature")
        body = {"name": "bad", "path": "none"}
        error = caught(lambda: client.post("/adapters", body=body, cast_to=object))
        assert type(error) is openai.NotFoundError
