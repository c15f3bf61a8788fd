"""The synchronous client.

    with Client("http://localhost:8000") as client:
        print(client.completions.create("2 + 2 =", adapter="math", max_tokens=8).text)
        with client.chat.stream([{"role": "user", "content": "hello"}], adapter="support") as stream:
            for chunk in stream:
                print(chunk.text, end="")
        client.adapters.upload("legal", "adapters/legal", on_progress=print)

Everything raises `shadow_client.error.ShadowClientError` and nothing else from the network.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Unpack

import httpx

from shadow_client import call
from shadow_client.adapter import Adapter, AdapterVersion, Deletion, Hub, Model, Validation
from shadow_client.error import UnavailableError
from shadow_client.generation import (
    ChatCompletion,
    ChatOptions,
    Completion,
    CompletionOptions,
    Message,
    Prompt,
)
from shadow_client.retry import RetryPolicy
from shadow_client.session import DEFAULT_URL, SessionSettings, SyncSession
from shadow_client.stream import Stream
from shadow_client.upload import Files, OnProgress
from shadow_client.waiting import Patience

URL_VARIABLE = "SHADOW_SERVER_URL"
KEY_VARIABLE = "SHADOW_SERVER_KEY"

LOAD_SECONDS = 600.0
"""How long a publish, a rollback or a pin may take."""


class Completions:
    """POST /v1/completions."""

    def __init__(self, session: SyncSession) -> None:
        self._session = session

    def create(
        self, prompt: Prompt, *, adapter: str | None = None, **options: Unpack[CompletionOptions]
    ) -> Completion:
        """Return the whole answer.

        Args:
            prompt: a text, several, or token ids.
            adapter: `name`, `name@3` or `tenant/name`; None for the bare base model.
            options: see `CompletionOptions`.
        """
        return self._session.run(call.completion(prompt, adapter, options))

    def stream(
        self, prompt: Prompt, *, adapter: str | None = None, **options: Unpack[CompletionOptions]
    ) -> Stream[Completion]:
        """Return the answer piece by piece; retries only before the first piece. Arguments as `create`."""
        asked = call.completion(prompt, adapter, options, stream=True)
        return Stream(self._session.open(asked), asked.read)


class Chat:
    """POST /v1/chat/completions."""

    def __init__(self, session: SyncSession) -> None:
        self._session = session

    def create(
        self,
        messages: list[Message],
        *,
        adapter: str | None = None,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion:
        """Return the whole answer to a conversation; arguments as `Completions.create`."""
        return self._session.run(call.chat(messages, adapter, options))

    def stream(
        self,
        messages: list[Message],
        *,
        adapter: str | None = None,
        **options: Unpack[ChatOptions],
    ) -> Stream[ChatCompletion]:
        """Return the answer piece by piece; retries only before the first piece."""
        asked = call.chat(messages, adapter, options, stream=True)
        return Stream(self._session.open(asked), asked.read)


class Adapters:
    """/v1/adapters: what a server serves beside the base model."""

    def __init__(self, session: SyncSession, sleep: Callable[[float], None]) -> None:
        self._session = session
        self._sleep = sleep

    def list(self, *, tenant: str | None = None) -> tuple[Adapter, ...]:
        """Return the adapters that the key may see, those that still drain included.

        Args:
            tenant: only that tenant's; an admin's key sees all.
        """
        found = self._session.run(call.adapters())
        return tuple(adapter for adapter in found if tenant in (None, adapter.tenant))

    def get(self, name: str) -> Adapter:
        """Return the current version, or the one that `name@3` asks for."""
        return self._session.run(call.adapter(name))

    def versions(self, name: str) -> tuple[AdapterVersion, ...]:
        """Return the versions, oldest first."""
        return self._session.run(call.versions(name))

    def publish(
        self,
        name: str,
        source: Path | str | Hub,
        *,
        backbone_config: str | None = None,
        can_replace: bool = True,
        wait: bool = True,
        on_progress: OnProgress | None = None,
        timeout_seconds: float = LOAD_SECONDS,
    ) -> Adapter:
        """Publish what the server reaches itself.

        Args:
            name: of the adapter; other bytes under a known one are its next version.
            source: a folder of the server's, below an `--adapter-root`, or a repository.
            backbone_config: the config of an explicit shadow backbone, a file of the server's.
            can_replace: False raises `AdapterExistsError` for a known name with other bytes.
            wait: return when it answers, not when it is registered.
            on_progress: told every stage.
            timeout_seconds: between two signs of life of the server.
        """
        asked = call.publish(
            name,
            source,
            backbone_config=backbone_config,
            can_replace=can_replace,
            wait=wait,
            stream=on_progress is not None,
            timeout_seconds=timeout_seconds,
        )
        return self._finish(asked, on_progress)

    def upload(
        self,
        name: str,
        files: Files,
        *,
        backbone_config: Path | str | None = None,
        can_replace: bool = True,
        wait: bool = True,
        on_progress: OnProgress | None = None,
        timeout_seconds: float = LOAD_SECONDS,
    ) -> Adapter:
        """Publish files of this machine: a folder that `save_pretrained` wrote, or the files; see `publish`.

        They are read from the disk while they are sent. `on_progress` is told `uploading` with bytes, then the
        server's stages. `backbone_config` is a file of this machine, too; a config.json among the files needs none.

        Raises:
            FileNotFoundError: there is no adapter at `files`, or no `backbone_config`.
        """
        asked = call.upload(
            name,
            files,
            backbone_config=backbone_config,
            can_replace=can_replace,
            wait=wait,
            on_progress=on_progress,
            timeout_seconds=timeout_seconds,
        )
        return self._finish(asked, on_progress)

    def wait(self, name: str, *, timeout_seconds: float = LOAD_SECONDS) -> Adapter:
        """Return the adapter once it is resident.

        Raises:
            AdapterNotReadyError: it failed, or the time is up.
        """
        patience = Patience(name, timeout_seconds)
        while True:
            seen = self.get(name)
            pause_seconds = patience.next_pause(seen)
            if pause_seconds is None:
                return seen
            self._sleep(pause_seconds)

    def validate(
        self,
        source: Path | str | Hub,
        *,
        backbone_config: str | None = None,
        timeout_seconds: float = LOAD_SECONDS,
    ) -> Validation:
        """Return what the server finds in files that it reaches itself; a bad adapter is no error here."""
        asked = call.validate(
            source, backbone_config=backbone_config, timeout_seconds=timeout_seconds
        )
        return self._session.run(asked)

    def validate_upload(
        self,
        files: Files,
        *,
        backbone_config: Path | str | None = None,
        on_progress: OnProgress | None = None,
        timeout_seconds: float = LOAD_SECONDS,
    ) -> Validation:
        """Return what the server finds in files of this machine; see `upload` and `validate`."""
        asked = call.validate_upload(
            files,
            backbone_config=backbone_config,
            on_progress=on_progress,
            timeout_seconds=timeout_seconds,
        )
        return self._session.run(asked)

    def rollback(
        self, name: str, version: int | None = None, *, timeout_seconds: float = LOAD_SECONDS
    ) -> Adapter:
        """Bind a name to an earlier version's bytes, as a new version.

        Args:
            name: of the adapter.
            version: whose bytes; None for the newest earlier one with other bytes.
            timeout_seconds: until it answers.
        """
        return self._session.run(call.rollback(name, version, timeout_seconds))

    def pin(self, name: str, *, timeout_seconds: float = LOAD_SECONDS) -> Adapter:
        """Keep an adapter in a slot of its own."""
        return self._session.run(call.pin(name, timeout_seconds))

    def unpin(self, name: str) -> Adapter:
        """Let an adapter be evicted again."""
        return self._session.run(call.unpin(name))

    def delete(self, name: str) -> Deletion:
        """Delete an adapter with its versions; requests that hold it finish."""
        return self._session.run(call.delete(name))

    def _finish(self, asked: call.Call[Adapter], on_progress: OnProgress | None) -> Adapter:
        if on_progress is None:
            return self._session.run(asked)
        return self._session.follow(asked, on_progress)


class Client:
    """A server, seen with one key. Safe to share between threads; close it, or use it in a `with`.

    Args:
        url: the server's address.
        key: a tenant's key, None for a server without tenants.
        timeout_seconds: between two signs of life of the server.
        retry: see `RetryPolicy`; `RetryPolicy(max_retries=0)` for never.
        transport: in place of the network, see `shadow_client.testing`.
        sleep: waits between retries.

    Attributes:
        completions, chat, adapters: the routes.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        key: str | None = None,
        *,
        timeout_seconds: float = 600.0,
        retry: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        settings = SessionSettings(url, key, timeout_seconds, retry or RetryPolicy())
        self._session = SyncSession(settings, transport, sleep)
        self.completions = Completions(self._session)
        self.chat = Chat(self._session)
        self.adapters = Adapters(self._session, sleep)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Client:
        """Return a client of `SHADOW_SERVER_URL` with `SHADOW_SERVER_KEY`."""
        found = os.environ if environment is None else environment
        return cls(
            found.get(URL_VARIABLE) or DEFAULT_URL, found.get(KEY_VARIABLE, "").strip() or None
        )

    def __repr__(self) -> str:
        return f"Client({self._session.url!r})"

    def __enter__(self) -> Client:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._session.close()

    def models(self) -> tuple[Model, ...]:
        """Return what requests may have in `model`: the base and the adapters that answer."""
        return self._session.run(call.models())

    def is_ready(self) -> bool:
        """Return whether requests would be served now; raises when the server does not answer at all."""
        try:
            self._session.text("/health/ready", is_sent_once=True)
        except UnavailableError:
            return False
        return True

    def version(self) -> str:
        """Return the engine's version."""
        return self._session.run(call.version())

    def metrics(self) -> str:
        """Return the Prometheus series, as text."""
        return self._session.text("/metrics")
