"""Makes the server's tenants file from the chart's `tenants` and from keys in Secrets, again whenever they change.

Runs in: a container beside the server, which takes over the file while it runs.

    python compose_tenants.py --tenants tenants.json --keys DIR --output FILE [--once]

A key is the file DIR/<secret>/<key>. A first attempt that fails ends the container; later ones are reported and leave
the file as it is. The salt of the tenants' cached prefixes is random for each pod: the cache outlives none.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shadow_server.tenancy.key import hash_secret, split_key
from shadow_server.tenancy.quota import TenantQuotas
from shadow_server.tenancy.tenants_file import (
    KeyRow,
    TenantRow,
    TenantsDocument,
    edit_document,
    new_document,
    read_document,
)

POLL_SECONDS = 2.0
QUOTAS = {
    "maxAdapters": "max_adapters",
    "maxStoredBytes": "max_stored_bytes",
    "maxResidentAdapters": "max_resident_adapters",
    "maxConcurrentRequests": "max_concurrent_requests",
    "requestsPerMinute": "requests_per_minute",
    "requestBurst": "request_burst",
    "tokensPerMinute": "tokens_per_minute",
}
"""Quotas as values spell them, and as the file does."""


class ComposeError(Exception):
    """The values or a Secret cannot be used; one sentence, never a key's text."""


def compose(
    tenants: Sequence[Mapping[str, Any]], keys: Path, previous: TenantsDocument, now_unix: int
) -> TenantsDocument:
    """Return the document of the values.

    Args:
        tenants: as the chart has them.
        keys: directory of the Secrets.
        previous: whose salt is kept, and the times of keys that were there already.
        now_unix: time of the others.

    Raises:
        ComposeError: a key's file is missing or holds no key, or a value is refused.
    """
    created = {key.hash: key.created_unix for row in previous.tenants for key in row.keys}
    try:
        rows = tuple(_tenant(tenant, keys, created, now_unix) for tenant in tenants)
        return TenantsDocument(version=1, salt=previous.salt, tenants=rows)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        raise ComposeError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _tenant(
    tenant: Mapping[str, Any], keys: Path, created: Mapping[str, int], now_unix: int
) -> TenantRow:
    references = tenant.get("keys") or ()
    quotas = {QUOTAS[name]: int(limit) for name, limit in (tenant.get("quotas") or {}).items()}
    return TenantRow(
        name=tenant["name"],
        weight=float(tenant.get("weight", 1.0)),
        can_use_base=tenant.get("canUseBase", True),
        quotas=TenantQuotas(**quotas),
        keys=tuple(_key(reference, keys, created, now_unix) for reference in references),
    )


def _key(
    reference: Mapping[str, str], keys: Path, created: Mapping[str, int], now_unix: int
) -> KeyRow:
    secret, name = reference["secretName"], reference["secretKey"]
    try:
        text = (keys / secret / name).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise ComposeError(f"the Secret {secret} has no readable key {name}") from None
    parts = split_key(text)
    if parts is None:
        raise ComposeError(
            f"{name} of the Secret {secret} is no key: make one with `shadowserve tenants create`"
        )
    key_id, key_hash = parts[0], hash_secret(parts[1])
    role = reference.get("role", "user")
    return KeyRow(id=key_id, hash=key_hash, role=role, created_unix=created.get(key_hash, now_unix))


def update(tenants: Path, keys: Path, output: Path) -> bool:
    """Write the file if it would change; returns whether it did. Raises ComposeError, TenantsFileError or OSError."""
    values = json.loads(tenants.read_text())
    previous = read_document(output) if output.exists() else new_document()
    wanted = compose(values, keys, previous, int(datetime.now(UTC).timestamp()))
    if output.exists() and wanted == previous:
        return False
    edit_document(output, lambda _: (wanted, None))
    return True


def main() -> int:
    """Run the command; 1 when the first attempt fails."""
    args = _parse()
    # Process 1 of a container dies of no signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    is_first, complaint = True, ""
    while True:
        try:
            if update(args.tenants, args.keys, args.output):
                _say("the tenants file is new")
            complaint = ""
        except Exception as error:  # whatever it is, the server goes on with the file that it has
            if is_first:
                _say(str(error))
                return 1
            if str(error) != complaint:
                _say(f"{error}; the tenants file stays as it is")
            complaint = str(error)
        if args.once:
            return 0
        is_first = False
        time.sleep(POLL_SECONDS)


def _say(text: str) -> None:
    sys.stderr.write(f"tenants: {text}\n")
    sys.stderr.flush()


def _parse() -> Namespace:
    parser = ArgumentParser(description="Make the tenants file of a release.")
    parser.add_argument("--tenants", type=Path, required=True)
    parser.add_argument("--keys", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--once", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
