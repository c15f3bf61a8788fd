"""The whole command line: what `shadowserve --help` shows, what the shell completes, how a command ends.

Runs in: the command's own process.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from shadow_client import ApiError, ShadowClientError
from shadow_server.command import adapters, bench, chat, doctor, top
from shadow_server.command.exit_code import ExitCode, exit_code_of, hint_of
from shadow_server.command.local import RefusedError
from shadow_server.command.output import write_note

PROGRAM = "shadowserve"

app = typer.Typer(
    name=PROGRAM,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None if os.environ.get("NO_COLOR") else "rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Serve many ShadowPEFT adapters over one frozen base model.",
)
app.add_typer(adapters.app, name="adapters")

_WHOLE = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
Words = Annotated[list[str] | None, typer.Argument(metavar="[OPTIONS]...")]


@app.command(context_settings=_WHOLE)
def serve(words: Words = None) -> None:
    """Serve a base model and adapters: `serve MODEL [--adapter NAME=PATH]...`; any vLLM serving option is taken."""
    _hand_over("serve", words)


@app.command(context_settings=_WHOLE)
def demo(words: Words = None) -> None:
    """Serve and try the shipped demo."""
    _hand_over("demo", words)


@app.command(context_settings=_WHOLE)
def tenants(words: Words = None) -> None:
    """Say who may use a server: `tenants create|set|remove|add-key|rotate|revoke|list`."""
    _hand_over("tenants", words)


app.command()(chat.chat)
app.command()(top.top)
app.command()(bench.bench)
app.command()(doctor.doctor)


def _hand_over(command: str, words: Sequence[str] | None) -> None:
    # These read their own command lines: vLLM's parser has hundreds of options.
    from shadow_server.cli import main

    raise typer.Exit(main([command, *(words or [])]))


def run(words: Sequence[str]) -> int:
    """Run a command line and return its exit status; see `ExitCode`."""
    try:
        try:
            app(args=list(words), prog_name=PROGRAM)
        finally:
            sys.stdout.flush()  # what does not fit is told here, and not while the interpreter ends
    except BrokenPipeError:  # `shadowserve adapters list | head`
        return _end_quietly()
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # the same, as click ends it
            return _end_quietly()
        return ended.code if isinstance(ended.code, int) else ExitCode.FAILED
    except (ShadowClientError, RefusedError, OSError, ValueError) as error:
        _report(error, is_json="--json" in words)
        return exit_code_of(error)
    return ExitCode.OK


def _end_quietly() -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitCode.OK


def _report(error: Exception, *, is_json: bool) -> None:
    code = error.code if isinstance(error, ApiError | RefusedError) else None
    if is_json:
        request_id = error.info.request_id if isinstance(error, ApiError) else None
        fields = {"message": str(error), "code": code, "request_id": request_id}
        sys.stderr.write(json.dumps({"error": fields}) + "\n")
        return
    write_note(f"{PROGRAM}: {error}{f' ({code})' if code else ''}")
    hint = hint_of(error)
    if hint is not None:
        write_note(f"  try: {hint}")
