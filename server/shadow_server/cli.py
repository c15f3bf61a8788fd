"""The `shadowserve` command.

Runs in: API process. Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

    from shadow_server.engine import Engine
    from shadow_server.settings import ServerSettings

_USAGE = """\
usage: shadowserve serve MODEL [--adapter NAME=PATH]... [options]   serve a base model and adapters
       shadowserve demo [--once] [--port PORT]                      serve and try the shipped demo

`shadowserve serve --help` lists every option; any vLLM serving option is taken too.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2 for a command that does not exist)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = words[0] if words else "--help"
    if command == "serve":
        from shadow_server.engine import run_engine_server

        return run_engine_server(words[1:], add_server_arguments, attach_server)
    if command == "demo":
        from shadow_server.demo_command import run_demo

        return run_demo(words[1:])
    if command in ("-h", "--help"):
        sys.stdout.write(_USAGE)
        return 0
    sys.stderr.write(f"shadowserve: no command {command!r} (try: shadowserve --help)\n")
    return 2


def add_server_arguments(parser: ArgumentParser) -> None:
    """Add the HTTP server's own options to the engine's parser."""
    from shadow_server.settings import ServerSettings

    defaults = ServerSettings()
    group = parser.add_argument_group("ShadowServe", "The HTTP server.")
    group.add_argument(
        "--adapter-root",
        action="append",
        default=[],
        type=_directory,
        metavar="DIR",
        help="Allow loading adapters below DIR over HTTP; repeatable. Without it no adapter can be "
        "loaded at run time.",
    )
    group.add_argument(
        "--max-body-bytes",
        type=int,
        default=defaults.max_body_bytes,
        help="Longest request body.",
    )
    group.add_argument(
        "--unload-wait-seconds",
        type=float,
        default=defaults.unload_wait_seconds,
        help="How long an unload waits for running requests before it answers 202.",
    )
    group.add_argument(
        "--max-adapter-labels",
        type=int,
        default=defaults.max_adapter_labels,
        help="Adapters with latency series of their own.",
    )


def server_settings(args: Namespace) -> ServerSettings:
    """Return the settings of a parsed command line."""
    from shadow_server.settings import ServerSettings

    return ServerSettings(
        adapter_roots=tuple(args.adapter_root),
        max_body_bytes=args.max_body_bytes,
        unload_wait_seconds=args.unload_wait_seconds,
        max_adapter_labels=args.max_adapter_labels,
    )


def attach_server(engine: Engine, args: Namespace) -> FastAPI:
    """Return the application of a started engine."""
    from shadow_server.app import build_app

    return build_app(engine, server_settings(args))


def _directory(text: str) -> str:
    if not os.path.isdir(text):
        raise ArgumentTypeError(f"{text!r} is not a directory")
    return os.path.realpath(text)
