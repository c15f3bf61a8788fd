"""`shadowserve adapters`: what a running server serves beside its base model.

Runs in: the command's own process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from shadow_client import Adapter, Client, Hub, Validation
from shadow_client.client import LOAD_SECONDS
from shadow_client.session import DEFAULT_URL
from shadow_client.upload import Files, find_files
from shadow_server.command.completion import complete_adapter
from shadow_server.command.connection import Json, Key, KeyFile, Url, connect
from shadow_server.command.exit_code import ExitCode
from shadow_server.command.local import Format, convert_adapter
from shadow_server.command.output import (
    short_digest,
    spell_bytes,
    write_fields,
    write_json,
    write_note,
    write_table,
)
from shadow_server.command.progress import progress_bar

app = typer.Typer(no_args_is_help=True, help="List, load, change and convert adapters.")

Name = Annotated[str, typer.Argument(help="NAME or TENANT/NAME.", autocompletion=complete_adapter)]
Names = Annotated[
    list[str], typer.Argument(help="NAME or TENANT/NAME.", autocompletion=complete_adapter)
]
Folder = Annotated[Path | None, typer.Argument(help="A folder of this machine, which is uploaded.")]
ServerPath = Annotated[
    str | None, typer.Option(help="A folder of the server's, below one of its --adapter-root.")
]
HubOption = Annotated[
    str | None, typer.Option("--hub", help="A Hugging Face repository: OWNER/NAME@COMMIT.")
]
BackboneConfig = Annotated[
    str | None,
    typer.Option(
        help="The config of an explicit shadow backbone: beside FOLDER a file of this machine, with"
        " --server-path one of the server's."
    ),
]

_HEADERS = ("name", "version", "state", "level", "pinned", "requests", "size", "digest")


@app.command("list")
def list_adapters(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's, for an admin.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """List adapters: names, versions, states, where their bytes are."""
    with connect(url, key, key_file) as client:
        found = client.adapters.list(tenant=tenant)
    if json:
        write_json(found)
    else:
        write_table(_HEADERS, [_row(adapter) for adapter in found])


@app.command()
def load(
    name: Annotated[str, typer.Argument(help="NAME or TENANT/NAME.")],
    folder: Folder = None,
    server_path: ServerPath = None,
    hub: HubOption = None,
    backbone_config: BackboneConfig = None,
    replace: Annotated[
        bool, typer.Option(help="Make the next version where the name has other bytes.")
    ] = True,
    wait: Annotated[bool, typer.Option(help="Return when it answers, not at the commit.")] = True,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it in a slot of its own.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Publish an adapter: a new name, or the next version of a known one."""
    source = _source(folder, server_path, hub)
    with connect(url, key, key_file) as client, progress_bar(name, is_quiet=json) as on_progress:
        options: dict[str, Any] = {
            "backbone_config": backbone_config,
            "can_replace": replace,
            "wait": wait,
            "on_progress": on_progress,
        }
        if isinstance(source, _Upload):
            made = client.adapters.upload(name, source.files, **options)
        else:
            made = client.adapters.publish(name, source, **options)
        if pin:
            made = client.adapters.pin(name)
    _show(made, json)


@app.command()
def unload(
    names: Names,
    url: Url = DEFAULT_URL,
    key: Key = None,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Delete adapters with all their versions; requests that use one finish on it."""
    gone = []
    with connect(url, key, key_file, timeout_seconds=LOAD_SECONDS) as client:
        for name in names:
            with progress_bar(f"{name}: unload", is_quiet=json):
                deletion = client.adapters.delete(name)
            gone.append(deletion)
            # Told at once: the next one may be refused.
            if not json:
                rest = "" if deletion.is_gone else "; requests still finish on it"
                write_note(f"'{deletion.name}' is deleted{rest}")
    if json:
        write_json(gone)


@app.command()
def validate(
    folder: Folder = None,
    server_path: ServerPath = None,
    hub: HubOption = None,
    backbone_config: BackboneConfig = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Check an adapter's files against the server's base model, and change nothing."""
    source = _source(folder, server_path, hub)
    with connect(url, key, key_file) as client:
        report = _validate(client, source, backbone_config, is_quiet=json)
    if json:
        write_json(report)
    else:
        write_fields(_report_fields(report))
    if not report.is_valid:
        raise typer.Exit(ExitCode.INVALID)


@app.command()
def versions(
    name: Name,
    url: Url = DEFAULT_URL,
    key: Key = None,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """List the versions of an adapter, oldest first."""
    with connect(url, key, key_file) as client:
        found = client.adapters.versions(name)
    if json:
        write_json(found)
        return
    rows = [
        (
            v.version,
            "*" if v.is_current else "",
            v.origin,
            v.format,
            spell_bytes(v.stored_bytes),
            short_digest(v.digest),
            v.source,
        )
        for v in found
    ]
    write_table(("version", "now", "origin", "format", "size", "digest", "source"), rows)


@app.command()
def wait(
    name: Name,
    timeout: Annotated[float, typer.Option(help="Seconds until it is given up.")] = LOAD_SECONDS,
    url: Url = DEFAULT_URL,
    key: Key = None,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Wait until an adapter answers."""
    with connect(url, key, key_file) as client, progress_bar(f"waiting for {name}", is_quiet=json):
        found = client.adapters.wait(name, timeout_seconds=timeout)
    _show(found, json)


@app.command()
def rollback(
    name: Name,
    to: Annotated[
        int | None,
        typer.Option("--to", help="A version; without it the newest earlier one with other bytes."),
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Bind a name to an earlier version's bytes, as a new version."""
    with connect(url, key, key_file) as client, progress_bar(f"{name}: back", is_quiet=json):
        made = client.adapters.rollback(name, to)
    _show(made, json)


@app.command()
def pin(
    name: Name,
    url: Url = DEFAULT_URL,
    key: Key = None,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Keep an adapter in a slot of its own."""
    with connect(url, key, key_file) as client, progress_bar(f"{name}: pin", is_quiet=json):
        made = client.adapters.pin(name)
    _show(made, json)


@app.command()
def unpin(
    name: Name,
    url: Url = DEFAULT_URL,
    key: Key = None,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Let an adapter be evicted again."""
    with connect(url, key, key_file) as client:
        made = client.adapters.unpin(name)
    _show(made, json)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A folder with an adapter of either format.")],
    target: Annotated[Path, typer.Argument(help="A new folder.")],
    base: Annotated[
        str, typer.Option(help="The base model that it is for: a folder or a Hugging Face name.")
    ],
    to: Annotated[Format, typer.Option("--to", help="The format of the new folder.")],
    backbone_config: Annotated[
        Path | None, typer.Option(help="Config of an explicit shadow backbone that lies elsewhere.")
    ] = None,
    json: Json = False,
) -> None:
    """Write an adapter in the other checkpoint format, where that can compute the same; needs no server.

    Within its own format it is written anew, without a trainer's prefixes, and keeps its digest.
    """
    with progress_bar(f"{source.name} to {to}", is_quiet=json):
        read, written = convert_adapter(source, target, to, base, backbone_config)
    if json:
        write_json({"source": read, "target": written})
        return
    same = " (the same)" if read["digest"] == written["digest"] else ""
    write_fields(
        [
            ("source", f"{source}, {read['format']}"),
            ("digest", read["digest"]),
            ("target", f"{target}, {written['format']}"),
            ("digest", f"{written['digest']}{same}"),
        ]
    )


class _Upload:
    """Files of this machine."""

    def __init__(self, folder: Path) -> None:
        # A file by its own name: the fake engine's adapters, or a single checkpoint beside others.
        self.files: Files = [folder] if folder.is_file() else find_files(folder)


def _source(folder: Path | None, server_path: str | None, hub: str | None) -> _Upload | str | Hub:
    if sum(source is not None for source in (folder, server_path, hub)) != 1:
        raise typer.BadParameter("give exactly one of FOLDER, --server-path and --hub")
    if folder is not None:
        return _Upload(folder)
    if server_path is not None:
        return server_path
    repo, _, revision = (hub or "").partition("@")
    if "/" not in repo or not revision:
        raise typer.BadParameter("--hub takes OWNER/NAME@COMMIT")
    return Hub(repo, revision)


def _validate(
    client: Client, source: _Upload | str | Hub, backbone_config: str | None, *, is_quiet: bool
) -> Validation:
    with progress_bar("checking", is_quiet=is_quiet) as on_progress:
        if isinstance(source, _Upload):
            return client.adapters.validate_upload(
                source.files, backbone_config=backbone_config, on_progress=on_progress
            )
        return client.adapters.validate(source, backbone_config=backbone_config)


def _show(adapter: Adapter, is_json: bool) -> None:
    if is_json:
        write_json(adapter)
        return
    pinned = ", pinned" if adapter.pinned else ""
    write_fields(
        [
            ("name", adapter.name),
            ("version", adapter.version),
            ("state", f"{adapter.state}, {adapter.level}{pinned}"),
            ("digest", adapter.digest),
            ("replaces", adapter.replaced_digest),
            *(("note", note) for note in adapter.notes),
        ]
    )


def _row(adapter: Adapter) -> Sequence[object]:
    return (
        adapter.name,
        adapter.version,
        adapter.state,
        adapter.level,
        "yes" if adapter.pinned else "",
        adapter.num_running_requests,
        spell_bytes(adapter.stored_bytes),
        short_digest(adapter.digest),
    )


def _report_fields(report: Validation) -> list[tuple[str, object]]:
    error = report.error
    size = None if report.stored_bytes is None else spell_bytes(report.stored_bytes)
    slot = None if report.slot_bytes is None else spell_bytes(report.slot_bytes)
    return [
        ("valid", "yes" if report.is_valid else "no"),
        ("reason", None if error is None else f"{error.message} ({error.code})"),
        ("digest", report.digest),
        ("format", report.format),
        ("rank", report.injection_rank),
        ("gate", report.gate_size),
        ("parameters", report.num_parameters),
        ("size", size),
        ("slot", None if slot is None else f"{report.slot_class}, {slot}"),
        ("tensors", len(report.tensors) or None),
        ("seconds", f"{report.seconds:.2f}"),
        *(("note", note) for note in report.notes),
    ]
