"""A server in memory, for tests of programs that use this client.

    def test_my_program():
        server = MockServer()
        server.publish("support")
        server.fail("server_overloaded")                      # the next request only
        with server.client() as client:
            assert my_program(client) == "[support] hello"
        assert server.bodies[-1]["adapter"] == "support"

It answers with the words `[adapter] prompt`, streams them one at a time, keeps adapters with versions, and refuses as
the server's table of errors says. No sockets, no threads, no waiting.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from shadow_client.async_client import AsyncClient
from shadow_client.client import Client
from shadow_client.error_code import CODE_ERRORS

__all__ = ["MockServer"]

BASE_NAME = "mock-base"

_ABSENT = (
    *("error", "digest", "format", "injection_rank", "gate_size", "num_parameters", "backbone"),
    *("tensor_bytes", "stored_bytes", "slot_class", "slot_bytes", "base_fingerprint"),
)

Answer = Callable[[str | None, str], str]


@dataclass
class _Version:
    version: int
    digest: str
    origin: str = "publish"


@dataclass
class _Adapter:
    versions: list[_Version] = field(default_factory=list)
    is_pinned: bool = False

    @property
    def current(self) -> _Version:
        return self.versions[-1]

    def add(self, digest: str, origin: str = "publish") -> None:
        self.versions.append(
            _Version(self.versions[-1].version + 1 if self.versions else 1, digest, origin)
        )


class _RefusedError(Exception):
    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(message)
        self.code, self.message = code, message or f"refused: {code}"


def _echo(adapter: str | None, prompt: str) -> str:
    return f"[{adapter or 'base'}] {prompt}"


class MockServer:
    """See the module.

    Args:
        answer: makes the text from the adapter's name, None for the base, and the prompt or last message.
        key: that requests must bring, None for a server without tenants.

    Attributes:
        requests: every request so far, those that were refused included.
    """

    def __init__(self, answer: Answer = _echo, key: str | None = None) -> None:
        self.requests: list[httpx.Request] = []
        self._answer = answer
        self._key = key
        self._adapters: dict[str, _Adapter] = {}
        self._failures: list[httpx.Response] = []

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """The JSON bodies of the requests that had one, in their order."""
        return [json.loads(r.content) for r in self.requests if _is_json(r)]

    def client(self, **options: Any) -> Client:
        """Return a client of this server that does not wait between retries; options as of `Client`."""
        defaults: dict[str, Any] = {"key": self._key, "sleep": lambda seconds: None}
        return Client("http://mock", transport=self.transport(), **(defaults | options))

    def async_client(self, **options: Any) -> AsyncClient:
        """Return an asynchronous client of this server; see `client`."""

        async def sleep(seconds: float) -> None:
            pass

        defaults: dict[str, Any] = {"key": self._key, "sleep": sleep}
        return AsyncClient("http://mock", transport=self.transport(), **(defaults | options))

    def transport(self) -> httpx.MockTransport:
        """Return what stands for the network in either client, and in httpx's and openai's own."""
        return httpx.MockTransport(self.handle)

    def publish(self, name: str, content: str = "") -> str:
        """Publish an adapter as if it had been done before; returns its digest, which `content` decides."""
        digest = f"sha256:{hashlib.sha256((content or name).encode()).hexdigest()}"
        adapter = self._adapters.setdefault(name, _Adapter())
        if not adapter.versions or adapter.current.digest != digest:
            adapter.add(digest)
        return digest

    def fail(
        self, code: str, *, num_times: int = 1, retry_after_seconds: int | None = None
    ) -> None:
        """Refuse the next requests with an error of the server's table.

        Args:
            code: of the table.
            num_times: how many of them.
            retry_after_seconds: told to the client; None for 1 where the error may be tried again, else nothing.

        Raises:
            KeyError: the table has no such code.
        """
        response = _refusal(_RefusedError(code), retry_after_seconds)
        self._failures += [response] * num_times

    def handle(self, request: httpx.Request) -> httpx.Response:
        """Answer one request; what `transport` calls."""
        self.requests.append(request)
        if self._failures:
            failure = self._failures.pop(0)
            return httpx.Response(
                failure.status_code, headers=failure.headers, content=failure.content
            )
        try:
            self._check_key(request)
            return self._route(request)
        except _RefusedError as error:
            return _refusal(error)

    def _check_key(self, request: httpx.Request) -> None:
        given = request.headers.get("authorization")
        if self._key is not None and given != f"Bearer {self._key}":
            raise _RefusedError("invalid_api_key")

    def _route(self, request: httpx.Request) -> httpx.Response:
        path, method = request.url.path, request.method
        for pattern, expected, handler in self._routes():
            if method == expected and (match := re.fullmatch(pattern, path)):
                return handler(request, *match.groups())
        raise _RefusedError("route_not_found", f"No route {path}")

    def _routes(self) -> list[tuple[str, str, Callable[..., httpx.Response]]]:
        name = "/v1/adapters/(.+)"
        return [
            ("/v1/completions", "POST", self._complete),
            ("/v1/chat/completions", "POST", self._chat),
            ("/v1/models", "GET", self._models),
            ("/v1/adapters", "GET", self._list),
            ("/v1/adapters", "POST", self._publish),
            ("/v1/adapters/validate", "POST", self._validate),
            (f"{name}/versions", "GET", self._versions),
            (f"{name}/rollback", "POST", self._rollback),
            (f"{name}/(pin|unpin)", "POST", self._pin),
            (name, "GET", self._get),
            (name, "DELETE", self._delete),
            ("/health/(?:live|ready)", "GET", lambda request: httpx.Response(200, json={})),
            ("/version", "GET", lambda request: httpx.Response(200, json={"version": "mock"})),
            ("/metrics", "GET", lambda request: httpx.Response(200, text="")),
        ]

    def _complete(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        name, headers = self._resolve(body)
        texts = [self._answer(name, str(prompt)) for prompt in prompts]
        if body.get("stream"):
            events = _stream(texts, lambda text: {"text": text}, name)
            return _events(events, headers)
        choices = [{"index": i, "text": t, "finish_reason": "stop"} for i, t in enumerate(texts)]
        return httpx.Response(200, json=_answered(choices, name, texts), headers=headers)

    def _chat(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        name, headers = self._resolve(body)
        text = self._answer(name, str(body["messages"][-1]["content"]))
        if body.get("stream"):
            events = _stream([text], lambda piece: {"delta": {"content": piece}}, name)
            return _events(events, headers)
        message = {"role": "assistant", "content": text}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return httpx.Response(200, json=_answered(choices, name, [text]), headers=headers)

    def _resolve(self, body: Mapping[str, Any]) -> tuple[str | None, dict[str, str]]:
        asked = body.get("adapter")
        if asked is None and body.get("model") not in (None, BASE_NAME):
            asked = str(body["model"])
        if asked is None:
            return None, {"x-request-id": "mock"}
        name, version = self._find(asked)
        return name, {
            "x-request-id": "mock",
            "x-shadow-adapter": name,
            "x-shadow-adapter-version": str(version.version),
            "x-shadow-adapter-digest": version.digest,
        }

    def _find(self, text: str) -> tuple[str, _Version]:
        name, _, number = text.partition("@")
        versions = self._adapters[name].versions if name in self._adapters else []
        for version in reversed(versions):
            if number in ("", str(version.version)):
                return name, version
        raise _RefusedError("adapter_not_found", f"No adapter '{text}'")

    def _models(self, request: httpx.Request) -> httpx.Response:
        cards = [{"id": BASE_NAME, "parent": None}]
        cards += [{"id": name, "parent": BASE_NAME} for name in self._adapters]
        shared = {"object": "model", "created": 0, "root": "mock", "max_model_len": 1024}
        return httpx.Response(
            200, json={"object": "list", "data": [card | shared for card in cards]}
        )

    def _list(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"data": [self._card(name) for name in self._adapters]})

    def _get(self, request: httpx.Request, text: str) -> httpx.Response:
        name, version = self._find(text)
        return httpx.Response(200, json=self._card(name, version))

    def _publish(self, request: httpx.Request) -> httpx.Response:
        if _is_json(request):
            fields = json.loads(request.content)
            content = str(fields.get("path") or fields.get("hub"))
        else:
            fields, content = _text_fields(request.content), _files_of(request)
        name = fields["name"]
        self.publish(name, content)
        card = self._card(name)
        if fields.get("stream") in (True, "true"):
            return _events([("resident", {}), ("published", card)], {})
        return httpx.Response(201, json=card)

    def _validate(self, request: httpx.Request) -> httpx.Response:
        absent = dict.fromkeys(_ABSENT)
        return httpx.Response(
            200, json=absent | {"is_valid": True, "tensors": [], "notes": [], "seconds": 0.0}
        )

    def _versions(self, request: httpx.Request, text: str) -> httpx.Response:
        name, current = self._find(text)
        cards = [
            _stored(v) | {"is_current": v is current, "origin": v.origin}
            for v in self._adapters[name].versions
        ]
        return httpx.Response(200, json={"object": "list", "data": cards})

    def _rollback(self, request: httpx.Request, text: str) -> httpx.Response:
        name, current = self._find(text)
        adapter, asked = self._adapters[name], json.loads(request.content or b"{}").get("version")
        for old in reversed(adapter.versions):
            if old.version == asked or (asked is None and old.digest != current.digest):
                adapter.add(old.digest, "rollback")
                return httpx.Response(
                    201, json=self._card(name) | {"replaced_digest": current.digest}
                )
        raise _RefusedError("adapter_not_found", "No earlier version")

    def _pin(self, request: httpx.Request, text: str, verb: str) -> httpx.Response:
        name, _ = self._find(text)
        self._adapters[name].is_pinned = verb == "pin"
        return httpx.Response(200, json=self._card(name))

    def _delete(self, request: httpx.Request, text: str) -> httpx.Response:
        name, version = self._find(text)
        del self._adapters[name]
        return httpx.Response(200, json={"id": name, "deleted": True, "digest": version.digest})

    def _card(self, name: str, version: _Version | None = None) -> dict[str, Any]:
        adapter = self._adapters[name]
        return _stored(version or adapter.current) | {
            "name": name,
            "tenant": name.partition("/")[0] if "/" in name else "default",
            "state": "RESIDENT",
            "level": "gpu",
            "pinned": adapter.is_pinned,
            "num_running_requests": 0,
        }


def _stored(version: _Version) -> dict[str, Any]:
    return {
        "version": version.version,
        "digest": version.digest,
        "created": 0,
        "format": "peft",
        "source": "mock",
        "num_parameters": 1,
        "stored_bytes": 1,
    }


def _is_json(request: httpx.Request) -> bool:
    return bool(request.content) and request.headers.get("content-type") == "application/json"


def _text_fields(body: bytes) -> dict[str, str]:
    found = re.findall(rb'form-data; name="(\w+)"\r\n\r\n([^\r]*)\r\n', body)
    return {name.decode(): value.decode() for name, value in found}


def _files_of(request: httpx.Request) -> str:
    boundary = request.headers["content-type"].partition("boundary=")[2].encode()
    files = request.content.partition(b"filename=")[2]
    return files.replace(boundary, b"").decode("latin-1")


def _answered(choices: list[Any], name: str | None, texts: list[str]) -> dict[str, Any]:
    num_tokens = sum(len(text.split()) for text in texts)
    usage = {"prompt_tokens": 1, "completion_tokens": num_tokens, "total_tokens": num_tokens + 1}
    return {
        "id": "mock",
        "model": name or BASE_NAME,
        "created": 0,
        "choices": choices,
        "usage": usage,
    }


def _stream(
    texts: list[str], piece: Callable[[str], dict[str, Any]], name: str | None
) -> Iterator[tuple[str, Any]]:
    for index, text in enumerate(texts):
        words = re.findall(r"\S+\s*", text) or [""]
        for place, word in enumerate(words, start=1):
            reason = "stop" if place == len(words) else None
            choice = {"index": index, "finish_reason": reason, **piece(word)}
            yield "", _answered([choice], name, []) | {"usage": None}
    yield "", _answered([], name, texts)


def _events(events: Any, headers: Mapping[str, str]) -> httpx.Response:
    lines = [
        f"{f'event: {name}' + chr(10) if name else ''}data: {json.dumps(data)}\n\n"
        for name, data in events
    ]
    shared = {"content-type": "text/event-stream"}
    body = "".join([*lines, "data: [DONE]\n\n"]).encode()
    return httpx.Response(200, content=body, headers=shared | dict(headers))


def _refusal(error: _RefusedError, retry_after_seconds: int | None = None) -> httpx.Response:
    known = CODE_ERRORS[error.code]
    if retry_after_seconds is None and known.is_retryable:
        retry_after_seconds = 1
    headers = {"x-request-id": "mock", "x-should-retry": str(known.is_retryable).lower()}
    if retry_after_seconds is not None:
        headers["retry-after"] = str(retry_after_seconds)
    fields = {"message": error.message, "type": None, "param": None, "code": error.code}
    return httpx.Response(known.default_status, json={"error": fields}, headers=headers)
