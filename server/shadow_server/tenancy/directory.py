"""Which key is whose: the tenants file in memory, read again when it changes.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from shadow_server.tenancy.identity import Identity
from shadow_server.tenancy.key import matches, split_key
from shadow_server.tenancy.tenants_file import (
    KeyRow,
    TenantRow,
    TenantsDocument,
    TenantsFileError,
    read_open_document,
)

logger = logging.getLogger(__name__)

_Stamp = tuple[int, int, int]
_WELL_FORMED_SECRET = "A" * 43


@dataclass(frozen=True, slots=True)
class _KnownKey:
    row: KeyRow
    identity: Identity


class TenantDirectory:
    """The tenants of one server.

    Ownership: one event loop; the file is read on a thread and its content exchanged on the loop.
    Failure: a file that cannot be read or parsed changes nothing; the error is logged once for each state
    of the file.
    """

    def __init__(
        self, path: Path, *, poll_seconds: float = 1.0, now_unix: Callable[[], float] | None = None
    ) -> None:
        """Read the file.

        Args:
            path: the tenants file.
            poll_seconds: how often `watch` looks at it.
            now_unix: clock of the keys' expiry.

        Raises:
            TenantsFileError: the file cannot be read or is not a tenants file.
        """
        self._path = path
        self._poll_seconds = poll_seconds
        self._now_unix = now_unix or _now_unix
        self._stamp, document = _read(path)
        self._keys = _index(document)

    def authenticate(self, key: str) -> Identity | None:
        """Return whom the key stands for; None when it is malformed, unknown, expired or revoked.

        Every way takes one hash and one comparison, so the time does not tell which key ids exist.
        """
        key_id, secret = split_key(key) or ("", _WELL_FORMED_SECRET)
        known = self._keys.get(key_id)
        if not matches(secret, None if known is None else known.row.hash) or known is None:
            return None
        return known.identity if known.row.is_valid_at(self._now_unix()) else None

    async def watch(self) -> None:
        """Take over every change of the file until cancelled."""
        while True:
            await asyncio.sleep(self._poll_seconds)
            await self.refresh()

    async def refresh(self) -> bool:
        """Take over the file if it changed; returns whether it did."""
        found = await asyncio.to_thread(_read_if_changed, self._path, self._stamp)
        if found is None:
            return False
        self._stamp, outcome = found
        if isinstance(outcome, TenantsFileError):
            logger.error("The tenants stay as they were: %s", outcome)
            return False
        self._keys = _index(outcome)
        logger.info("The tenants file was read again: %d keys", len(self._keys))
        return True


_ABSENT: _Stamp = (0, 0, 0)


def _read(path: Path) -> tuple[_Stamp, TenantsDocument]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise TenantsFileError(f"{path} cannot be read: {error.strerror}") from None
    try:
        # Taken before the content: what is written later makes another stamp.
        stamp = _stamp_of(os.fstat(descriptor))
        return stamp, read_open_document(descriptor, path)
    except OSError as error:
        raise TenantsFileError(f"{path} cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _read_if_changed(
    path: Path, known: _Stamp
) -> tuple[_Stamp, TenantsDocument | TenantsFileError] | None:
    try:
        stamp = _stamp_of(path.stat())
    except OSError:
        stamp = _ABSENT
    if stamp == known:
        return None
    try:
        return _read(path)
    except TenantsFileError as error:
        return stamp, error


def _stamp_of(stat: os.stat_result) -> _Stamp:
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _index(document: TenantsDocument) -> dict[str, _KnownKey]:
    return {
        key.id: _KnownKey(key, _identity(document.salt, tenant, key))
        for tenant in document.tenants
        for key in tenant.keys
    }


def _identity(salt: str, tenant: TenantRow, key: KeyRow) -> Identity:
    cache_salt = hmac.new(bytes.fromhex(salt), tenant.name.encode(), hashlib.sha256).hexdigest()
    return Identity(
        tenant=tenant.name,
        role=key.role,
        key_id=key.id,
        can_use_base=tenant.can_use_base,
        weight=tenant.weight,
        cache_salt=cache_salt,
        quotas=tenant.quotas,
    )


def _now_unix() -> float:
    return datetime.now(UTC).timestamp()
