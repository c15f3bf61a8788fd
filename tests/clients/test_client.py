"""Both clients over the mock server: what is sent, what comes back, when it is sent again."""

import inspect

import httpx
import pytest

import shadow_client
from shadow_client import (
    AsyncClient,
    BadAnswerError,
    Client,
    ConnectionFailedError,
    RetryPolicy,
    TimedOutError,
)
from shadow_client.async_client import AsyncAdapters, AsyncChat, AsyncCompletions
from shadow_client.client import Adapters, Chat, Completions
from shadow_client.error import AdapterNotReadyError, ApiError
from shadow_client.error_code import (
    AdapterNotFoundError,
    RateLimitExceededError,
    ServerOverloadedError,
)
from shadow_client.session import SessionSettings
from shadow_client.testing import MockServer

TALK = [{"role": "user", "content": "hi there"}]


def test_completion_and_who_gave_it(mock, client):
    digest = mock.publish("support")
    answer = client.completions.create("hi", adapter="support", max_tokens=3, extra={"min_p": 0.5})
    assert answer.text == "[support] hi"
    assert (answer.info.adapter, answer.info.adapter_version) == ("support", 1)
    assert answer.info.adapter_digest == digest
    assert answer.usage.completion_tokens == 2
    assert mock.bodies == [{"prompt": "hi", "adapter": "support", "max_tokens": 3, "min_p": 0.5}]


def test_without_an_adapter_the_base_is_asked(mock, client):
    assert client.completions.create(["a", "b"]).choices[1].text == "[base] b"
    assert client.completions.create("a").info.adapter is None
    assert "adapter" not in mock.bodies[0]


def test_chat(mock, client):
    mock.publish("support")
    assert client.chat.create(TALK, adapter="support@1").text == "[support] hi there"
    assert mock.bodies == [{"messages": TALK, "adapter": "support@1"}]


@pytest.mark.parametrize("route", ["completions", "chat"])
def test_streams(mock, client, route):
    mock.publish("support")
    asked = TALK if route == "chat" else "hi there"
    with getattr(client, route).stream(asked, adapter="support") as stream:
        assert stream.info.adapter == "support"
        chunks = list(stream)
        assert [chunk.text for chunk in chunks] == ["[support] ", "hi ", "there", ""]
        reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        assert reasons == [None, None, "stop"]
        assert stream.usage.completion_tokens == 3
    assert mock.bodies[0]["stream_options"] == {"include_usage": True}


def test_the_rest_of_a_stream_as_text(client):
    with client.completions.stream(["one two", "three"]) as stream:
        assert stream.read_text() == "[base] one two"


def test_adapters(mock, client):
    first = mock.publish("support", "one")
    second = mock.publish("support", "two")
    mock.publish("acme/other")
    adapters = client.adapters
    assert [a.name for a in adapters.list()] == ["support", "acme/other"]
    assert [a.name for a in adapters.list(tenant="acme")] == ["acme/other"]
    assert adapters.get("support").digest == second
    assert [v.digest for v in adapters.versions("support")] == [first, second]
    back = adapters.rollback("support")
    assert (back.version, back.digest, back.replaced_digest) == (3, first, second)
    assert adapters.rollback("support", 2).digest == second
    assert adapters.pin("support").pinned
    assert not adapters.unpin("support").pinned
    assert adapters.delete("acme/other").is_gone
    assert [a.name for a in adapters.list()] == ["support"]
    assert mock.requests[-2].url.raw_path == b"/v1/adapters/acme/other"


def test_publish_and_upload(mock, client, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert client.adapters.publish("a", "folder").version == 1
    told = []
    made = client.adapters.upload("b", tmp_path, on_progress=told.append)
    assert (made.name, made.version) == ("b", 1)
    assert [p.stage for p in told] == ["uploading"] * 3 + ["resident"]
    assert client.adapters.upload("b", tmp_path).version == 1  # the same bytes
    assert client.adapters.validate("folder").is_valid
    assert client.adapters.validate_upload(tmp_path).is_valid
    assert client.adapters.wait("b").name == "b"
    assert mock.bodies[0] == {
        "name": "a",
        "path": "folder",
        "can_replace": True,
        "wait": True,
        "stream": False,
    }


def test_an_upload_and_its_validation_bring_the_backbone_config(mock, client, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    config = tmp_path / "narrow.json"
    config.write_text('{"hidden_size": 7}')
    client.adapters.upload("a", tmp_path, backbone_config=config)
    client.adapters.validate_upload(tmp_path, backbone_config=str(config))
    for request in mock.requests:
        head, _, rest = request.content.partition(b'name="backbone_config"')
        assert b'{"hidden_size": 7}' in rest
        assert b'{"hidden_size": 7}' not in head
    with pytest.raises(FileNotFoundError, match=r"there is no file .*gone\.json"):
        client.adapters.upload("a", tmp_path, backbone_config=tmp_path / "gone.json")
    assert len(mock.requests) == 2


@pytest.mark.parametrize("name", ["", "a//b", "../models", "a/..", "a\nb"])
def test_names_that_would_be_other_routes(mock, client, name):
    with pytest.raises(ValueError, match="is no adapter's name"):
        client.adapters.delete(name)
    assert mock.requests == []


def test_errors_are_of_the_tree(client):
    with pytest.raises(AdapterNotFoundError) as caught:
        client.completions.create("hi", adapter="nobody")
    error = caught.value
    assert (error.status, error.code, error.message) == (404, "adapter_not_found", str(error))
    assert error.info.request_id == "mock"
    assert not error.should_retry


def test_a_refusal_is_tried_again_after_the_wait_that_it_asks_for(mock, kind):
    mock.fail("server_overloaded", num_times=2, retry_after_seconds=3)
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    retry = RetryPolicy(max_retries=2, random=lambda: 0.0)
    if kind == "sync":
        answer = mock.client(retry=retry, sleep=waits.append).completions.create("hi")
    else:
        from anyio import run

        async def ask():
            return await mock.async_client(retry=retry, sleep=sleep).completions.create("hi")

        answer = run(ask)
    assert answer.text == "[base] hi"
    assert waits == [3.0, 3.0]
    assert len(mock.requests) == 3


def test_retries_end(mock, client):
    mock.fail("rate_limit_exceeded", num_times=9)
    with pytest.raises(RateLimitExceededError):
        client.completions.create("hi")
    assert len(mock.requests) == 3


def test_a_rollback_without_a_version_is_not_sent_twice(mock, client):
    mock.publish("a", "one")
    mock.publish("a", "two")
    mock.fail("catalog_unavailable")
    with pytest.raises(ApiError):
        client.adapters.rollback("a")
    assert len(mock.requests) == 1
    mock.fail("catalog_unavailable")
    assert client.adapters.rollback("a", 1).version == 3


def test_an_upload_is_sent_again_whole(mock, client, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    mock.fail("server_overloaded")
    assert client.adapters.upload("a", tmp_path).version == 1
    first, second = mock.requests
    assert first.content == second.content


def test_a_stream_is_opened_again_but_not_continued(mock, client):
    mock.fail("server_overloaded")
    with client.completions.stream("hi") as stream:
        assert stream.read_text() == "[base] hi"
    mock.fail("server_overloaded", num_times=9)
    with pytest.raises(ServerOverloadedError):
        client.completions.stream("hi")


def over(handler, open_client, **options):
    server = MockServer()
    server.handle = handler
    return open_client(server, **options)


@pytest.mark.parametrize(
    ("failure", "expected", "num_sent"),
    [
        (httpx.ConnectError("refused"), ConnectionFailedError, 3),
        (httpx.ReadError("reset"), ConnectionFailedError, 1),
        (httpx.ReadTimeout("late"), TimedOutError, 1),
    ],
)
def test_broken_connections(open_client, failure, expected, num_sent):
    sent = []

    def handler(request):
        sent.append(request)
        raise failure

    with (
        over(handler, open_client) as client,
        pytest.raises(expected, match="http://mock") as caught,
    ):
        client.completions.create("hi")
    assert len(sent) == num_sent
    assert caught.value.was_sent == (num_sent == 1)


@pytest.mark.parametrize("body", ["<html>", "[]", "{}", '{"data": 3}'])
def test_another_programs_answer(open_client, body):
    with (
        over(lambda _: httpx.Response(200, text=body), open_client) as client,
        pytest.raises(BadAnswerError),
    ):
        client.adapters.list()


@pytest.mark.parametrize("encoding", ["gzip", None])
def test_bytes_that_cannot_be_read_are_no_answer(open_client, encoding):
    # Not compressed as it says, and deeper than the parser goes.
    headers = {} if encoding is None else {"content-encoding": encoding}

    def answer(request):
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(b"[" * 100_000))

    with over(answer, open_client) as client:
        with pytest.raises(BadAnswerError):
            client.adapters.list()
        if encoding is not None:
            with pytest.raises(BadAnswerError), client.completions.stream("hi") as stream:
                list(stream)


def test_a_redirect_is_not_followed_with_the_key_and_has_its_status(open_client):
    sent = []

    def answer(request):
        sent.append(request)
        return httpx.Response(307, headers={"location": "http://elsewhere/"})

    with over(answer, open_client) as client, pytest.raises(ApiError) as caught:
        client.adapters.list()
    assert (caught.value.status, caught.value.code, len(sent)) == (307, None, 1)


def test_a_proxys_error_has_its_status(open_client):
    with (
        over(lambda _: httpx.Response(502, text="<html>"), open_client) as client,
        pytest.raises(ApiError) as caught,
    ):
        client.completions.create("hi")
    assert (caught.value.status, caught.value.code) == (502, None)


def test_waiting_ends_with_what_the_server_says(open_client):
    states = ["LOADING", "FAILED"]
    mock = MockServer()
    mock.publish("a")
    inner = mock.handle

    def handler(request):
        answer = inner(request)
        card = answer.json() | {"state": states.pop(0), "failure": "no room"}
        return httpx.Response(200, json=card)

    with (
        over(handler, open_client) as client,
        pytest.raises(AdapterNotReadyError, match="'a' cannot be loaded: no room"),
    ):
        client.adapters.wait("a")
    states += ["LOADING"]
    with (
        over(handler, open_client) as client,
        pytest.raises(AdapterNotReadyError, match="is LOADING after 0 s"),
    ):
        client.adapters.wait("a", timeout_seconds=0)


def test_readiness(mock, client):
    assert client.is_ready()
    mock.fail("not_ready")
    assert not client.is_ready()  # an answer: not asked again until it is another one
    assert client.version() == "mock"
    assert client.models()[0].parent is None
    assert client.metrics() == ""


def test_a_key_is_sent_and_never_shown(open_client):
    server = MockServer(key="sk-secret")
    with open_client(server) as client:
        assert client.completions.create("hi").text == "[base] hi"
    with open_client(server, key="sk-wrong") as client, pytest.raises(ApiError) as caught:
        client.completions.create("hi")
    assert caught.value.code == "invalid_api_key"
    shown = f"{caught.value!r} {caught.value} {client!r} {caught.value.info!r}"
    assert "sk-" not in shown
    assert repr(Client("http://x", "sk-secret")) == "Client('http://x')"


@pytest.mark.parametrize("key", ["sk-secret\n", "sk-sécret", "sk secret", ""])
@pytest.mark.parametrize("cls", [Client, AsyncClient])
def test_a_key_that_no_header_takes_is_refused_without_being_told(cls, key):
    with pytest.raises(ValueError, match="the key is none") as caught:
        cls("http://x", key)
    assert "cret" not in f"{caught.value!r}"
    assert "sk-" not in repr(SessionSettings("http://x", "sk-secret", 1.0, RetryPolicy()))


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "", "http://a\n"])
def test_what_is_no_address_is_refused_at_once(url):
    with pytest.raises(ValueError, match="is no address"):
        Client(url)


def test_a_password_in_an_address_is_in_no_message(open_client):
    def refuse(request):
        raise httpx.ConnectError("refused")

    never = RetryPolicy(max_retries=0)
    with Client("http://me:secret@x", retry=never, transport=httpx.MockTransport(refuse)) as client:
        with pytest.raises(ConnectionFailedError, match="http://x cannot be reached") as caught:
            client.models()
        assert "secret" not in f"{client!r} {caught.value!r}"


@pytest.mark.parametrize("cls", [Client, AsyncClient])
def test_settings_from_the_environment(cls):
    made = cls.from_environment({"SHADOW_SERVER_URL": "http://x:1", "SHADOW_SERVER_KEY": "k"})
    assert made._session.url == "http://x:1"
    assert made._session._http.headers["authorization"] == "Bearer k"
    assert cls.from_environment({})._session.url == "http://localhost:8000"
    # A file of a Kubernetes secret often ends in a line end.
    made = cls.from_environment({"SHADOW_SERVER_KEY": "k\n"})
    assert made._session._http.headers["authorization"] == "Bearer k"


@pytest.mark.parametrize(
    ("plain", "asynchronous"),
    [
        (Client, AsyncClient),
        (Completions, AsyncCompletions),
        (Chat, AsyncChat),
        (Adapters, AsyncAdapters),
    ],
)
def test_the_two_clients_have_the_same_methods(plain, asynchronous):
    def methods(cls):
        return {n: f for n, f in vars(cls).items() if inspect.isfunction(f) and n[0] != "_"}

    assert methods(plain).keys() == methods(asynchronous).keys()
    for name, method in methods(plain).items():
        other = inspect.signature(methods(asynchronous)[name])
        ours = inspect.signature(method)
        assert list(ours.parameters.values()) == list(other.parameters.values()), name
        assert other.return_annotation.replace("Async", "") == ours.return_annotation
        assert inspect.iscoroutinefunction(methods(asynchronous)[name])


def test_every_error_is_importable_from_one_place():
    for name in shadow_client.__all__:
        assert getattr(shadow_client, name) is not None


def test_the_mock_server_serves_openai_too(mock):
    import openai

    mock.publish("support")
    http_client = httpx.Client(transport=mock.transport())
    with openai.OpenAI(base_url="http://mock/v1", api_key="x", http_client=http_client) as client:
        answer = client.completions.create(
            model="mock-base", prompt="hi", extra_body={"adapter": "support"}
        )
        assert answer.choices[0].text == "[support] hi"
        assert {model.id for model in client.models.list()} == {"mock-base", "support"}
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="nobody", prompt="hi")


def test_the_documents_example_runs(tmp_path):
    from source_tree import ROOT

    block = (ROOT / "docs" / "client.md").read_text().split("```python\n")[-1].split("```")[0]
    names: dict = {}
    exec(compile(block, "client.md", "exec"), names)
    names["test_my_program"]()
