"""`shadowserve doctor`: whether this machine can serve, and whether a server answers.

Runs in: the command's own process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from shadow_client import RetryPolicy
from shadow_client.session import DEFAULT_URL
from shadow_server.command.checkup import Finding, Status, check_machine
from shadow_server.command.connection import Json, Key, KeyFile, Url, connect
from shadow_server.command.exit_code import ExitCode
from shadow_server.command.output import is_coloured, shown, write_json
from shadow_server.command.progress import progress_bar
from shadow_server.command.server_checkup import check_server

# Longer than a server takes to find out that it is not ready.
_PATIENCE_SECONDS = 10.0
_NEVER = RetryPolicy(max_retries=0)
_COLOURS = {Status.OK: "32", Status.WARNING: "33", Status.FAILURE: "31"}


def doctor(
    port: Annotated[int, typer.Option(min=1, max=65535, help="That `serve` would take.")] = 8000,
    state_dir: Annotated[
        Path | None, typer.Option(help="--state-dir of `serve`; without it its default.")
    ] = None,
    adapter_root: Annotated[
        list[Path] | None, typer.Option(help="--adapter-root of `serve`; repeatable.")
    ] = None,
    tenants_file: Annotated[Path | None, typer.Option(help="--tenants-file of `serve`.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Look for what keeps a server from starting or answering, each with what to try. Changes nothing."""
    with (
        connect(url, key, key_file, retry=_NEVER, timeout_seconds=_PATIENCE_SECONDS) as client,
        progress_bar("looking", is_quiet=json),
    ):
        findings = check_machine(port, state_dir, adapter_root or [], tenants_file)
        findings += check_server(client, url)
    if json:
        write_json(findings)
    else:
        for finding in findings:
            _show(finding)
    if any(finding.status is Status.FAILURE for finding in findings):
        raise typer.Exit(ExitCode.FAILED)


def _show(finding: Finding) -> None:
    mark = f"{finding.status.value:<7}"
    if is_coloured(sys.stdout):
        mark = f"\x1b[{_COLOURS[finding.status]}m{mark}\x1b[0m"
    sys.stdout.write(f"{mark}  {finding.what:<12}  {shown(finding.detail)}\n")
    if finding.hint is not None:
        sys.stdout.write(f"{'':<23}try: {shown(finding.hint)}\n")
