"""The `shadowserve` command.

Runs in: API process. Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, _ArgumentGroup
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

    from shadow_server.engine import Engine
    from shadow_server.settings import ServerSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (`shadow_server.command.exit_code.ExitCode`)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = words[0] if words else None
    if command == "serve":
        from shadow_server.engine import run_engine_server

        return run_engine_server(
            words[1:], add_server_arguments, check_server_arguments, attach_server
        )
    if command == "demo":
        from shadow_server.demo_command import run_demo

        return run_demo(words[1:])
    if command == "tenants":
        from shadow_server.tenancy.command import run_tenants

        return run_tenants(words[1:])
    from shadow_server.command import connection, root

    if arguments is None:
        connection.keep_key_out_of_the_process_list(words)
    return root.run(words)


def add_server_arguments(parser: ArgumentParser) -> None:
    """Add the HTTP server's own options to the engine's parser."""
    group = parser.add_argument_group("ShadowServe", "The HTTP server.")
    _add_access_arguments(group)
    _add_source_arguments(group)
    _add_limit_arguments(group)


def _add_access_arguments(group: _ArgumentGroup) -> None:
    group.add_argument(
        "--tenants-file",
        type=Path,
        metavar="FILE",
        help="Tenants and the hashes of their keys, made by `shadowserve tenants create`; every "
        "request needs a key then. Changes of the file are taken over while the server runs.",
    )
    group.add_argument(
        "--allow-unauthenticated",
        action="store_true",
        help="Without a tenants file, listen beyond this machine all the same: everyone who "
        "reaches the server is an admin.",
    )


def _add_source_arguments(group: _ArgumentGroup) -> None:
    group.add_argument(
        "--adapter-root",
        action="append",
        default=[],
        type=_directory,
        metavar="DIR",
        help="Allow loading adapters from directories below DIR over HTTP; repeatable. Without it "
        "no directory can be loaded at run time.",
    )
    group.add_argument(
        "--hub-allow",
        action="append",
        default=[],
        metavar="PATTERN",
        help="Allow loading adapters from Hugging Face repositories like PATTERN (`org/*`) at a "
        "pinned revision; repeatable. Without it no repository can be.",
    )
    group.add_argument(
        "--hub-endpoint",
        type=_url_without_login,
        metavar="URL",
        help="The hub. Default: huggingface.co.",
    )


def _add_limit_arguments(group: _ArgumentGroup) -> None:
    from shadow_server.settings import ServerSettings

    defaults = ServerSettings()
    group.add_argument(
        "--max-queued-requests",
        type=_whole,
        default=defaults.max_queued_requests,
        metavar="N",
        help="Requests that may wait beyond those that the engine runs at once; more are answered "
        "503. Default: 4 for each that runs, at least 1024.",
    )
    for name, kind, text in (
        ("max_body_bytes", _whole, "Longest request body, uploads aside."),
        ("max_upload_bytes", _whole, "Longest upload of an adapter."),
        (
            "unload_wait_seconds",
            float,
            "How long a delete waits for requests before it answers 202.",
        ),
        ("max_adapter_labels", _whole, "Adapters of a tenant with series of their own."),
    ):
        flag, default = f"--{name.replace('_', '-')}", getattr(defaults, name)
        group.add_argument(flag, type=kind, default=default, metavar="N", help=text)


def check_server_arguments(args: Namespace) -> None:
    """Check what the options mean together, before anything is started.

    Without a host, keys and permission the server is bound to this machine: `args.host` is set.

    Raises:
        ConfigError: the options contradict each other, or the tenants file cannot be used.
    """
    from shadow_server.tenancy.exposure import choose_host
    from shadow_server.tenancy.tenants_file import read_document

    has_tenants = args.tenants_file is not None
    if has_tenants:
        _refuse_beside_tenants(args)
        read_document(args.tenants_file)
    # A socket file has permissions of its own.
    if not args.uds:
        args.host = choose_host(
            args.host, has_tenants=has_tenants, is_allowed=args.allow_unauthenticated
        )


def _refuse_beside_tenants(args: Namespace) -> None:
    from shadow_server.engine import runtime_errors

    reasons = {
        "--tenants-file and --api-key (or VLLM_API_KEY) are two sets of keys: give one": (
            args.api_key or os.environ.get("VLLM_API_KEY")
        ),
        "--allow-unauthenticated has no meaning with --tenants-file: every request needs a key": (
            args.allow_unauthenticated
        ),
        "--scheduling-policy priority with --tenants-file would let one tenant's requests go "
        "before another's": args.scheduling_policy == "priority",
    }
    for reason, is_refused in reasons.items():
        if is_refused:
            raise runtime_errors.ConfigError(reason)


def server_settings(args: Namespace) -> ServerSettings:
    """Return the settings of a parsed command line."""
    from shadow_server.settings import ServerSettings

    # The engine's own option; it is absent where the engine's parser is.
    max_running = getattr(args, "max_num_seqs", None) or ServerSettings().max_running_requests
    return ServerSettings(
        adapter_roots=tuple(args.adapter_root),
        hub_allow=tuple(args.hub_allow),
        hub_endpoint=args.hub_endpoint,
        max_body_bytes=args.max_body_bytes,
        max_upload_bytes=args.max_upload_bytes,
        unload_wait_seconds=args.unload_wait_seconds,
        max_adapter_labels=args.max_adapter_labels,
        max_running_requests=max_running,
        max_queued_requests=args.max_queued_requests,
    )


def attach_server(engine: Engine, args: Namespace) -> FastAPI:
    """Return the application of a started engine."""
    from shadow_server.app import build_app
    from shadow_server.tenancy.directory import TenantDirectory

    tenants = None if args.tenants_file is None else TenantDirectory(args.tenants_file)
    return build_app(engine, server_settings(args), tenants=tenants)


def _directory(text: str) -> str:
    if not os.path.isdir(text):
        raise ArgumentTypeError(f"{text!r} is not a directory")
    return os.path.realpath(text)


def _url_without_login(text: str) -> str:
    # Command lines end up in logs and process lists.
    if "@" in text:
        raise ArgumentTypeError("no user or password here")
    return text


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)
