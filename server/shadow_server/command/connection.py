"""Where the server is and with which key: options, environment, and a key that is in nobody's process list.

Runs in: the command's own process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import httpx
import typer

from shadow_client import AsyncClient, Client, RetryPolicy
from shadow_client.client import KEY_VARIABLE, URL_VARIABLE
from shadow_client.session import DEFAULT_URL, check_url

# A person waits: less patient than a program.
_RETRY = RetryPolicy(first_wait_seconds=0.2)
_QUIET_SECONDS = 30.0

COMMANDS_WITH_KEY = ("adapters", "bench", "chat", "doctor", "top")

Url = Annotated[str, typer.Option("--url", envvar=URL_VARIABLE, help="The server's address.")]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar=KEY_VARIABLE,
        show_default=False,
        help="A tenant's key. Better in the environment or a file: shells keep a history.",
    ),
]
KeyFile = Annotated[
    Path | None, typer.Option("--key-file", help="A file whose first line is the key.")
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON for programs.")]


def connect(
    url: str = DEFAULT_URL,
    key: str | None = None,
    key_file: Path | None = None,
    *,
    retry: RetryPolicy = _RETRY,
    timeout_seconds: float = _QUIET_SECONDS,
) -> Client:
    """Return a client; the caller closes it.

    Args:
        url: the server's address.
        key: wins over the environment's, and `key_file` over both.
        key_file: its first line is the key.
        retry: see `RetryPolicy`.
        timeout_seconds: between two signs of life of the server, where a call has no longer time of its own.

    Raises:
        FileNotFoundError: there is no key file.
        typer.BadParameter: the address is none.
    """
    address, secret = _check(url), _read_key(key, key_file)
    return Client(address, secret, retry=retry, timeout_seconds=timeout_seconds)


def connect_many(url: str, key: str | None, key_file: Path | None) -> AsyncClient:
    """Return a client that sends as much at once as it is told to, and repeats nothing; raises as `connect` does."""
    transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None))
    return AsyncClient(
        _check(url),
        _read_key(key, key_file),
        retry=RetryPolicy(max_retries=0),
        transport=transport,
    )


def _check(url: str) -> str:
    try:
        check_url(url)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return url.rstrip("/")


def _read_key(key: str | None, key_file: Path | None) -> str | None:
    if key_file is not None:
        key = key_file.read_text(encoding="utf-8").partition("\n")[0]
    # Of the environment, too: a secret that was mounted or read from a file often ends in a line end.
    return (key or "").strip() or None


def keep_key_out_of_the_process_list(words: Sequence[str]) -> None:
    """Start this process again without its `--key`, which goes into the environment; returns when there is none.

    A command line is readable for every user of a machine, an environment for its owner only. The key of a command
    that has not come this far is seen for some milliseconds all the same.
    """
    rest, key = take_key(words)
    if key is not None:
        environment = os.environ | {KEY_VARIABLE: key}
        # -P: or a package of this name in the current folder would be run, and get the key.
        command = [sys.executable, "-P", "-m", "shadow_server", *rest]
        sys.stdout.flush()
        os.execve(sys.executable, command, environment)  # noqa: S606 - this very program


def take_key(words: Sequence[str]) -> tuple[list[str], str | None]:
    """Return a command line without its `--key`, and the key; None for a command that has none."""
    rest = list(words)
    if not rest or rest[0] not in COMMANDS_WITH_KEY:
        return rest, None
    end = rest.index("--") if "--" in rest else len(rest)
    found: list[str] = []  # the last one first: it counts, and none may stay
    for position in reversed(range(1, end)):
        if rest[position].startswith("--key="):
            found.append(rest.pop(position).removeprefix("--key="))
        elif rest[position] == "--key" and position + 1 < end:
            found.append(rest.pop(position + 1))
            rest.pop(position)
            end -= 2
    return rest, found[0] if found else None
