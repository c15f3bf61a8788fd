"""What is refused before any engine sees it."""

import json

import pytest

from fake_server import error_of
from shadow_server.errors import ApiError
from shadow_server.openai.body import parse_json

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nope",
        b'{"prompt": "hi"',
        b'{"adapter": "a", "adapter": "b"}',
        b'{"prompt": "hi", "nested": {"x": 1, "x": 1}}',
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "a\x00b"}',
        b'{"prompt": "\\ud800"}',
        b'{"\\uDFFF": 1}',
        b'{"prompt": ["x", {"y": "\\udc00\\ud800"}]}',
        b"\x00" * 8,
        '{"prompt": "hi"}'.encode("utf-16"),
        b'\xef\xbb\xbf{"prompt": "hi"}',
        b'{"temperature": NaN}',
        b'{"temperature": -Infinity}',
        b'{"max_tokens": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 20_000,
        b'{"prompt": "hi"} {}',
    ],
)
async def test_bodies_that_are_not_strict_json(server, data):
    answer = await server.client.post("/v1/completions", content=data[:99_999], headers=JSON)
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["code"] == "invalid_json"
    assert len(error["message"]) < 300


@pytest.mark.parametrize("value", [[], "text", 1, None, True])
async def test_bodies_that_are_not_objects(server, value):
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/adapters", "/tokenize"):
        answer = await server.client.post(path, content=json.dumps(value), headers=JSON)
        assert answer.status_code == 400
        assert error_of(answer)["code"] == "invalid_json"


async def test_content_type_is_required(server):
    for headers in ({}, {"content-type": "text/plain"}, {"content-type": "application/jsonx"}):
        answer = await server.client.post("/v1/completions", content=b"{}", headers=headers)
        assert answer.status_code == 415
        assert error_of(answer)["code"] == "unsupported_media_type"
    answer = await server.complete()
    assert answer.status_code == 200


async def test_body_bound_holds_with_and_without_declared_length(server):
    limit = server.settings.max_body_bytes
    fitting = json.dumps({"prompt": "hi", "pad": ""})
    pad = "x" * (limit - len(fitting))
    exact = json.dumps({"prompt": "hi", "pad": pad})
    assert len(exact) == limit

    async def chunks(text):
        for start in range(0, len(text), 1000):
            yield text[start : start + 1000].encode()

    for content in (exact, chunks(exact)):
        answer = await server.client.post("/v1/completions", content=content, headers=JSON)
        assert answer.status_code == 200
    for content in (exact + " ", chunks(exact + " ")):
        answer = await server.client.post("/v1/completions", content=content, headers=JSON)
        assert answer.status_code == 413
        assert error_of(answer)["code"] == "request_too_large"
    for lie in ("99999999999999999999999", "-1", "x"):
        headers = JSON | {"content-length": lie}
        answer = await server.client.post("/v1/completions", content=b"{}", headers=headers)
        assert answer.status_code == 400


def test_parse_keeps_values():
    text = '{"a": [1, 2.5, "\\u00e9", null, true], "b": {"a": 1}}'
    assert parse_json(text.encode()) == json.loads(text)


def test_surrogate_pairs_are_text():
    assert parse_json(b'{"a": "\\ud83d\\ude00 \\\\ud800"}') == {"a": "\U0001f600 \\ud800"}


def test_duplicate_key_is_named():
    with pytest.raises(ApiError, match="'adapter' appears twice"):
        parse_json(b'{"adapter": "a", "x": 1, "adapter": "a"}')
