"""`shadowserve tenants`: who may use a server, and with which keys.

Runs in: the command's own process; a running server takes over what it writes within a second or two.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from shadow_server.engine import is_tenant_name
from shadow_server.tenancy.identity import Role
from shadow_server.tenancy.key import MintedKey, mint_key
from shadow_server.tenancy.quota import TenantQuotas
from shadow_server.tenancy.tenants_file import (
    KeyRow,
    TenantRow,
    TenantsDocument,
    TenantsFileError,
    edit_document,
    read_document,
)

_PROGRAM = "shadowserve tenants"

ResultT = TypeVar("ResultT")

_QUOTA_OPTIONS = {
    "max_adapters": "Adapters that the tenant may have.",
    "max_stored_bytes": "Bytes that all versions of its adapters may take.",
    "max_resident_adapters": "Its adapters that the engine holds at once.",
    "max_concurrent_requests": "Generation requests at once.",
    "requests_per_minute": "Generation requests a minute.",
    "request_burst": "How many of a minute's requests may come at once; all of them by default.",
    "tokens_per_minute": "Prompt and generated tokens a minute.",
}

_REMOVE_TEXT = (
    "Remove a tenant with its keys. Its adapters stay in the registry until an admin deletes them "
    "by their full names; a new tenant of the same name gets them."
)


def run_tenants(arguments: Sequence[str]) -> int:
    """Run `shadowserve tenants`: returns 0, or 1 when it cannot be done; exits with 2 on a wrong command line."""
    parser = make_parser()
    args = parser.parse_args(list(arguments))
    try:
        return int(args.run(args))
    except TenantsFileError as error:
        sys.stderr.write(f"{_PROGRAM}: {error}\n")
        return 1


def make_parser() -> ArgumentParser:
    """Return the parser of the command's own words."""
    parser = ArgumentParser(
        prog=_PROGRAM,
        description="Tenants and their keys. A key is shown once, on standard output.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[Namespace], int], text: str) -> ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        file_help = "The file of the server's --tenants-file. Required."
        command.add_argument(
            "--tenants-file", type=Path, required=True, metavar="FILE", help=file_help
        )
        command.set_defaults(run=run, refuse=command.error)
        return command

    create = add("create", _create, "Add a tenant with its first key.")
    _add_tenant(create)
    create.set_defaults(weight=1.0, base=True)
    _add_role(create)
    _add_quotas(create, _positive_int, "N")
    change = add("set", _set, "Change a tenant; what is not named stays.")
    _add_tenant(change)
    _add_quotas(change, _limit, "N|none")
    add("remove", _remove, _REMOVE_TEXT).add_argument("name", type=_name, metavar="NAME")
    key = add("add-key", _add_key, "Add a key to a tenant.")
    key.add_argument("name", type=_name, metavar="NAME")
    _add_role(key)
    rotate = add("rotate", _rotate, "Exchange a tenant's keys, or one of them, for new ones.")
    _add_selection(rotate)
    rotate.add_argument(
        "--grace",
        type=_positive_int,
        metavar="SECONDS",
        help="Accept the old keys for so long; without it they end at once.",
    )
    _add_selection(add("revoke", _revoke, "Refuse a tenant's keys, or one of them."))
    listing = add("list", _list, "Show the tenants; keys by their ids only.")
    listing.add_argument("--json", action="store_true", help="For programs.")
    return parser


def _add_tenant(command: ArgumentParser) -> None:
    command.add_argument("name", type=_name, metavar="NAME")
    command.add_argument("--weight", type=float, help="Share of contended slots.")
    text = "Allow or refuse the bare base model."
    command.add_argument("--base", action=BooleanOptionalAction, help=text)


def _add_quotas(
    command: ArgumentParser, kind: Callable[[str], int | Literal["none"]], metavar: str
) -> None:
    for option, text in _QUOTA_OPTIONS.items():
        flag = f"--{option.replace('_', '-')}"
        command.add_argument(flag, type=kind, metavar=metavar, help=text)


def _add_role(command: ArgumentParser) -> None:
    command.add_argument("--role", choices=["user", "admin"], default="user", help="Of the key.")


def _add_selection(command: ArgumentParser) -> None:
    command.add_argument("name", type=_name, metavar="NAME")
    command.add_argument("--key", metavar="ID", help="The key's id; without it all of them.")


def _create(args: Namespace) -> int:
    minted = mint_key()

    def change(document: TenantsDocument) -> tuple[TenantsDocument, None]:
        if document.find(args.name) is not None:
            raise TenantsFileError(f"the tenant '{args.name}' exists already (try: add-key)")
        return document.with_tenant(_new_tenant(args, minted)), None

    edit_document(args.tenants_file, change)
    return _show([minted])


def _new_tenant(args: Namespace, minted: MintedKey) -> TenantRow:
    keys = (_key_row(minted, args.role),)
    with _refusing_values():
        return _changed(TenantRow(name=args.name, keys=keys), args)


def _set(args: Namespace) -> int:
    given = [getattr(args, option) for option in ("weight", "base", *_QUOTA_OPTIONS)]
    if all(value is None for value in given):
        args.refuse("there is nothing to change: give at least one option")

    def change(tenant: TenantRow) -> tuple[TenantRow, None]:
        return _changed(tenant, args), None

    with _refusing_values():
        _edit_tenant(args, change)
    return 0


def _changed(tenant: TenantRow, args: Namespace) -> TenantRow:
    """Return the tenant with what the command line names; a quota of "none" is removed."""
    given = {option: getattr(args, option) for option in _QUOTA_OPTIONS}
    limits = {o: None if v == "none" else v for o, v in given.items() if v is not None}
    return TenantRow(
        name=tenant.name,
        weight=tenant.weight if args.weight is None else args.weight,
        can_use_base=tenant.can_use_base if args.base is None else args.base,
        quotas=TenantQuotas(**{**tenant.quotas.model_dump(), **limits}),
        keys=tenant.keys,
    )


@contextmanager
def _refusing_values() -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"{part}: " for part in first["loc"][-1:])
        raise TenantsFileError(f"{place}{first['msg']}") from None


def _remove(args: Namespace) -> int:
    def change(document: TenantsDocument) -> tuple[TenantsDocument, None]:
        return document.without_tenant(_known(document, args.name)), None

    _edit(args, change)
    sys.stderr.write(f"'{args.name}' is removed; its adapters stay until an admin deletes them\n")
    return 0


def _add_key(args: Namespace) -> int:
    minted = mint_key()

    def change(tenant: TenantRow) -> tuple[TenantRow, None]:
        return _with_keys(tenant, (*tenant.keys, _key_row(minted, args.role))), None

    _edit_tenant(args, change)
    return _show([minted])


def _rotate(args: Namespace) -> int:
    def change(tenant: TenantRow) -> tuple[TenantRow, list[MintedKey]]:
        # Keys that an earlier rotation lets run out have their successors already.
        old = [k for k in _selected(tenant, args.key) if args.key or k.expires_unix is None]
        new = [(mint_key(), key.role) for key in old]
        grace = args.grace
        ended = {"revoked": True} if grace is None else {"expires_unix": _now() + grace}
        rows = [key.model_copy(update=ended) if key in old else key for key in tenant.keys]
        rows += [_key_row(minted, role) for minted, role in new]
        return _with_keys(tenant, tuple(rows)), [minted for minted, _ in new]

    return _show(_edit_tenant(args, change))


def _revoke(args: Namespace) -> int:
    def change(tenant: TenantRow) -> tuple[TenantRow, int]:
        old = _selected(tenant, args.key)
        rows = (k.model_copy(update={"revoked": True}) if k in old else k for k in tenant.keys)
        return _with_keys(tenant, tuple(rows)), len(old)

    num_revoked = _edit_tenant(args, change)
    sys.stderr.write(f"{num_revoked} key{'' if num_revoked == 1 else 's'} revoked\n")
    return 0


def _list(args: Namespace) -> int:
    tenants = read_document(args.tenants_file).tenants
    if args.json:
        sys.stdout.write(json.dumps([_described(tenant) for tenant in tenants], indent=2) + "\n")
        return 0
    for tenant in tenants:
        base = "" if tenant.can_use_base else ", no base model"
        sys.stdout.write(f"{tenant.name}  weight {tenant.weight:g}{base}\n")
        for option, value in tenant.quotas.model_dump(exclude_none=True).items():
            sys.stdout.write(f"  {option} {value}\n")
        for key in tenant.keys:
            sys.stdout.write(f"  key {key.id}  {key.role}  {_state(key)}\n")
    return 0


def _described(tenant: TenantRow) -> dict[str, Any]:
    content = tenant.model_dump(exclude={"keys"})
    keys = [key.model_dump(exclude={"hash"}) | {"state": _state(key)} for key in tenant.keys]
    return content | {"keys": keys}


def _state(key: KeyRow) -> str:
    if key.revoked:
        return "revoked"
    if not key.is_valid_at(_now()):
        return "expired"
    return "active" if key.expires_unix is None else "expiring"


def _edit_tenant(
    args: Namespace, change: Callable[[TenantRow], tuple[TenantRow, ResultT]]
) -> ResultT:
    def change_document(document: TenantsDocument) -> tuple[TenantsDocument, ResultT]:
        changed, result = change(_known(document, args.name))
        return document.with_tenant(changed), result

    return _edit(args, change_document)


def _edit(
    args: Namespace, change: Callable[[TenantsDocument], tuple[TenantsDocument, ResultT]]
) -> ResultT:
    if not args.tenants_file.exists():
        raise TenantsFileError(f"{args.tenants_file} does not exist (try: create)")
    return edit_document(args.tenants_file, change)


def _known(document: TenantsDocument, name: str) -> TenantRow:
    tenant = document.find(name)
    if tenant is None:
        raise TenantsFileError(f"there is no tenant '{name}' (try: create)")
    return tenant


def _selected(tenant: TenantRow, key_id: str | None) -> list[KeyRow]:
    valid = [key for key in tenant.keys if key.is_valid_at(_now())]
    selected = [key for key in valid if key_id in (None, key.id)]
    if not selected:
        which = "active key" if key_id is None else f"active key '{key_id}'"
        raise TenantsFileError(f"the tenant '{tenant.name}' has no {which} (try: add-key)")
    return selected


def _with_keys(tenant: TenantRow, keys: tuple[KeyRow, ...]) -> TenantRow:
    return tenant.model_copy(update={"keys": keys})


def _key_row(minted: MintedKey, role: Role) -> KeyRow:
    return KeyRow(id=minted.key_id, hash=minted.hash, role=role, created_unix=_now())


def _show(keys: Sequence[MintedKey]) -> int:
    # The only place that a key's text is ever written to.
    sys.stdout.writelines(f"{key.text}\n" for key in keys)
    sys.stderr.write("Keep it: only its hash was stored.\n")
    return 0


def _name(text: str) -> str:
    if not is_tenant_name(text):
        raise ArgumentTypeError(
            f"{text!r} is no tenant name: 1 to 63 of a-z, 0-9 and '-', the first a letter or digit"
        )
    return text


def _positive_int(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _limit(text: str) -> int | Literal["none"]:
    # Not 0: that could as well mean that nothing is allowed.
    if text == "none":
        return "none"
    try:
        return _positive_int(text)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{error}; 'none' removes the limit") from None


def _now() -> int:
    return int(datetime.now(UTC).timestamp())
