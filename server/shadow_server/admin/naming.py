"""Whose adapter a spelled name is, and how an adapter is spelled back.

Runs in: API process.
"""

from __future__ import annotations

from collections.abc import Collection

from shadow_server.engine import AdapterName, parse_adapter, runtime_errors
from shadow_server.errors import ApiError
from shadow_server.tenancy.identity import Identity

RESERVED_NAMES = frozenset({"versions"})
"""Names that no adapter gets: `GET /v1/adapters/acme/versions` lists the versions of `acme`."""


def reach(text: str, identity: Identity) -> tuple[AdapterName, int | None]:
    """Return the adapter and version that `text` means to the caller; whether it exists is not asked.

    Raises:
        AdapterNotFoundError: it cannot be a name, or is another tenant's: the two are told alike.
    """
    found = parse_adapter(text, identity.tenant)
    if found is None or not identity.can_reach(found[0]):
        raise unknown_adapter(text)
    return found


def reach_name(text: str, identity: Identity) -> AdapterName:
    """Return what `reach` returns, where a version makes no sense and is not found either."""
    name, version = reach(text, identity)
    if version is not None:
        raise unknown_adapter(text)
    return name


def name_to_publish(
    text: str, identity: Identity, base_names: Collection[str], param: str
) -> AdapterName:
    """Return the name that a publish under `text` binds.

    Raises:
        ApiError: 400 for a name that no adapter can have.
        AdapterNotFoundError: another tenant's name, as if it were one that does not exist.
    """
    found = parse_adapter(text, identity.tenant)
    if found is None or found[1] is not None:
        raise _invalid(
            "An adapter name is 1 to 128 letters, digits, '.', '_' or '-', the first a letter or "
            "digit; a tenant and a slash may stand before it",
            param,
        )
    name = found[0]
    if not identity.can_reach(name):
        raise unknown_adapter(text)
    if {text, name.name, name.display} & set(base_names):
        raise _invalid("The name is the base model's", param)
    if name.name in RESERVED_NAMES:
        raise _invalid(f"The name '{name.name}' is reserved", param)
    return name


def shown_name(name: AdapterName, identity: Identity) -> str:
    """Return the name as the caller spells it: short for its own adapters, full for other tenants'."""
    return name.name if name.tenant == identity.tenant else str(name)


def unknown_adapter(text: str) -> runtime_errors.AdapterNotFoundError:
    """Return the error of a name that means nothing to the caller."""
    return runtime_errors.AdapterNotFoundError(f"No adapter '{text[:256]}'")


def _invalid(message: str, param: str) -> ApiError:
    return ApiError.of("adapter_name_invalid", message, param=param)
