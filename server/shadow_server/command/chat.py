"""`shadowserve chat`: ask a server, one prompt or a conversation.

Runs in: the command's own process.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from shadow_client import ApiError, ChatCompletion, Client, Message, ShadowClientError, Stream
from shadow_client.client import LOAD_SECONDS
from shadow_client.generation import ChatOptions
from shadow_client.session import DEFAULT_URL
from shadow_server.command.completion import complete_adapter
from shadow_server.command.connection import Json, Key, KeyFile, Url, connect
from shadow_server.command.output import is_coloured, shown_text, write_json, write_note
from shadow_server.command.progress import progress_bar

_HELP = "/adapter NAME  ask another one (/adapter alone: the base)    /reset  forget    /quit"


def chat(
    prompt: Annotated[
        str | None, typer.Argument(help="Asked once; without it a conversation begins.")
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(help="Who answers; without it the base.", autocompletion=complete_adapter),
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message in front.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 for the likeliest.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same answer again.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Ask an adapter or the base model; text from a pipe is a prompt, too."""
    options: ChatOptions = {"max_tokens": max_tokens}
    if temperature is not None:
        options["temperature"] = temperature
    if seed is not None:
        options["seed"] = seed
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
    if prompt == "":
        raise typer.BadParameter("the prompt is empty")
    # Until the first token: a queue, an adapter that has to be loaded, a long prompt.
    with connect(url, key, key_file, timeout_seconds=LOAD_SECONDS) as client:
        conversation = Conversation(client, adapter, system, options)
        if prompt is not None:
            _ask_once(conversation, prompt, is_json=json)
        elif json:
            raise typer.BadParameter("--json needs a PROMPT")
        else:
            _converse(conversation)


class Conversation:
    """What was said so far, and who is asked next.

    An answer that fails or is interrupted leaves the conversation as it was before the question.
    """

    def __init__(
        self, client: Client, adapter: str | None, system: str | None, options: ChatOptions
    ) -> None:
        self.adapter = adapter
        self.messages: list[Message] = []
        self.stream: Stream[ChatCompletion] | None = None
        self._client = client
        self._options = options
        self._system: list[Message] = (
            [] if system is None else [{"role": "system", "content": system}]
        )

    def ask(self, text: str) -> Iterator[str]:
        """Yield the answer to `text` piece by piece."""
        asked: list[Message] = [*self.messages, {"role": "user", "content": text}]
        said = ""
        with self._client.chat.stream(
            [*self._system, *asked], adapter=self.adapter, **self._options
        ) as self.stream:
            for chunk in self.stream:
                said += chunk.text
                yield chunk.text
        self.messages = [*asked, {"role": "assistant", "content": said}]


def _ask_once(conversation: Conversation, prompt: str, *, is_json: bool) -> None:
    if not is_json:
        _write(conversation.ask(prompt))
        return
    text = "".join(conversation.ask(prompt))
    info = conversation.stream.info if conversation.stream else None
    usage = conversation.stream.usage if conversation.stream else None
    write_json(
        {
            "text": text,
            "adapter": info and info.adapter,
            "version": info and info.adapter_version,
            "digest": info and info.adapter_digest,
            "usage": usage,
        }
    )


def _converse(conversation: Conversation) -> None:
    write_note(_HELP)
    while (line := _read_line(conversation.adapter)) is not None:
        word, _, rest = line.partition(" ")
        if word == "/quit":
            return
        if word == "/reset":
            conversation.messages = []
        elif word == "/adapter":
            conversation.adapter = rest.strip() or None
        elif word.startswith("/"):
            write_note(_HELP)
        elif line.strip():
            _answer(conversation, line)


def _answer(conversation: Conversation, line: str) -> None:
    try:
        _write(conversation.ask(line))
    except KeyboardInterrupt:  # the answer, not the conversation
        write_note(" [stopped]")
    except ShadowClientError as error:
        code = error.code if isinstance(error, ApiError) else None
        write_note(f"{error} ({code})" if code else str(error))


def _read_line(adapter: str | None) -> str | None:
    name = adapter or "base"
    shown = f"\x1b[1m{name}>\x1b[0m " if is_coloured(sys.stdout) else f"{name}> "
    try:
        return input(shown)
    except (EOFError, KeyboardInterrupt):
        write_note("")
        return None


def _write(pieces: Iterator[str]) -> None:
    spell = shown_text if sys.stdout.isatty() else str
    with progress_bar("waiting"):
        first = next(pieces, "")
    for piece in itertools.chain([first], pieces):
        sys.stdout.write(spell(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")
