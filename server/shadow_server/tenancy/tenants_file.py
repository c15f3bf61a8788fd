"""The tenants file: strict JSON that holds hashes, limits and one random salt, changed as a whole or not at all.

Runs in: API process (reads), the `tenants` command (reads and writes).
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from shadow_server.engine import is_tenant_name, runtime_errors
from shadow_server.tenancy.identity import Role
from shadow_server.tenancy.quota import NO_QUOTAS, TenantQuotas

MAX_FILE_BYTES = 16 << 20

ResultT = TypeVar("ResultT")


class TenantsFileError(runtime_errors.ConfigError):
    """The tenants file cannot be read or written, or does not hold what it must; one sentence."""


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class KeyRow(_Row):
    """One key of a tenant.

    Attributes:
        id: public part, unique in the file.
        hash: sha256 of the secret part, hex.
        role: what the key may do.
        created_unix: seconds since the epoch.
        expires_unix: it is refused from then on; None for never.
        revoked: it is refused.
    """

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    role: Role
    created_unix: Annotated[int, Field(ge=0)]
    expires_unix: Annotated[int, Field(ge=0)] | None = None
    revoked: bool = False

    def is_valid_at(self, now_unix: float) -> bool:
        """Return whether the key is accepted at an instant."""
        return not self.revoked and (self.expires_unix is None or now_unix < self.expires_unix)


def _check_name(name: str) -> str:
    if not is_tenant_name(name):
        raise ValueError("must be 1 to 63 of a-z, 0-9 and '-', the first a letter or digit")
    return name


class TenantRow(_Row):
    """One tenant.

    Attributes:
        name: also the first half of its adapters' full names.
        weight: share of contended slots and of the queue. Range over 0 to 1000.
        can_use_base: may ask the bare base model.
        quotas: limits.
        keys: any number, revoked ones included.
    """

    name: Annotated[str, AfterValidator(_check_name)]
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    can_use_base: bool = True
    quotas: TenantQuotas = NO_QUOTAS
    keys: tuple[KeyRow, ...] = ()


class TenantsDocument(_Row):
    """The whole file.

    Attributes:
        version: of the format.
        salt: 64 random hex digits; the tenants' prefix salts are derived from it.
        tenants: all of them, by unique names.
    """

    version: Literal[1]
    salt: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tenants: tuple[TenantRow, ...] = ()

    @model_validator(mode="after")
    def _check_unique(self) -> TenantsDocument:
        for kind, values in (
            ("tenant", [tenant.name for tenant in self.tenants]),
            ("key id", [key.id for tenant in self.tenants for key in tenant.keys]),
        ):
            value, count = max(Counter(values).items(), key=itemgetter(1), default=("", 0))
            if count > 1:
                raise ValueError(f"the {kind} {value!r} appears twice")
        return self

    def find(self, name: str) -> TenantRow | None:
        """Return a tenant, None when the file has no such name."""
        return next((tenant for tenant in self.tenants if tenant.name == name), None)

    def with_tenant(self, changed: TenantRow) -> TenantsDocument:
        """Return the document with the tenant of that name replaced, or added at the end."""
        rows = [changed if row.name == changed.name else row for row in self.tenants]
        if self.find(changed.name) is None:
            rows.append(changed)
        return TenantsDocument(version=1, salt=self.salt, tenants=tuple(rows))

    def without_tenant(self, removed: TenantRow) -> TenantsDocument:
        """Return the document without the tenant of that name."""
        rows = tuple(row for row in self.tenants if row.name != removed.name)
        return TenantsDocument(version=1, salt=self.salt, tenants=rows)


def new_document() -> TenantsDocument:
    """Return a document without tenants, with a new salt."""
    return TenantsDocument(version=1, salt=secrets.token_hex(32))


def parse_document(data: bytes) -> TenantsDocument:
    """Return the document in `data`; raises TenantsFileError, which never repeats what the file holds."""
    try:
        return TenantsDocument.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise TenantsFileError(f"{place or 'the file'}: {first['msg']}") from None


def read_document(path: Path) -> TenantsDocument:
    """Return the document in the file at `path`; raises TenantsFileError."""
    try:
        with path.open("rb") as file:
            return read_open_document(file.fileno(), path)
    except OSError as error:
        raise TenantsFileError(f"{path} cannot be read: {error.strerror}") from None


def read_open_document(descriptor: int, path: Path) -> TenantsDocument:
    """Return the document in an open file; `path` is for messages. Raises TenantsFileError or OSError."""
    with os.fdopen(os.dup(descriptor), "rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise TenantsFileError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    try:
        return parse_document(data)
    except TenantsFileError as error:
        raise TenantsFileError(f"{path} is not a tenants file: {error}") from None


def edit_document(
    path: Path, change: Callable[[TenantsDocument], tuple[TenantsDocument, ResultT]]
) -> ResultT:
    """Replace the file's document by what `change` makes of it; a file that does not exist starts empty.

    Two edits never lose one another, and a reader or a crash sees the old file or the new one.

    Returns:
        The second value of `change`.

    Raises:
        TenantsFileError: the file cannot be read or written; it is unchanged then.
    """
    # A link stays a link: what it leads to is replaced.
    path = Path(os.path.realpath(path))
    try:
        with _locked(path):
            document = read_document(path) if path.exists() else new_document()
            changed, result = change(document)
            _replace(path, changed.model_dump_json(indent=2).encode() + b"\n")
            return result
    except OSError as error:
        raise TenantsFileError(f"{path} cannot be written: {error.strerror}") from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # A file beside it: the tenants file itself is another one after each edit.
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
        ) as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
