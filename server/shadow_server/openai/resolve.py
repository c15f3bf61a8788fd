"""Which adapter a request asks for.

Runs in: API process.

    model                    adapter             meaning
    base or absent           absent or null      the base model
    base or absent           A                   adapter A
    A, or base:A             absent, null, A     adapter A
    A, or base:A             B                   400 adapter_conflict
    anything else            any                 404 model_not_found

A and B are spelled `support`, `support@3`, `acme/support` or `acme/support@3`; a short name is the caller's own
tenant's. Two spellings of one adapter agree, and so do one with a version and one without: the version counts. A base
model's name may look like any of these and wins in `model`. Another tenant's adapter is one that does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from shadow_server.engine import AdapterName, parse_adapter
from shadow_server.errors import ApiError
from shadow_server.tenancy.identity import Identity

HasAdapter = Callable[[AdapterName, int | None], bool]


@dataclass(frozen=True, slots=True)
class AskedAdapter:
    """What a request asks for; that it exists is not said.

    Attributes:
        name: one that the caller may reach.
        version: None for the current one.
        text: as the request spelled it, for messages.
    """

    name: AdapterName
    version: int | None
    text: str


def resolve_adapter(
    body: dict[str, Any],
    base_names: Collection[str],
    identity: Identity,
    has_adapter: HasAdapter,
) -> AskedAdapter | None:
    """Return the adapter that `body` asks for, None for the base model.

    Removes `adapter` from the body: what is left are the engine's own fields.

    Raises:
        ApiError: 400 for a mistyped field or a conflict, 404 for an unknown model or an adapter that the caller
            cannot reach.
    """
    adapter, model = _read_name(body, "adapter"), _read_name(body, "model")
    body.pop("adapter", None)
    asked = None if adapter is None else _parse(adapter, identity)
    if model is None or model in base_names:
        return asked
    from_model = _adapter_of_model(model, base_names, identity, has_adapter)
    return from_model if asked is None else _agree(from_model, asked)


def adapter_not_found(text: str) -> ApiError:
    """Return the error of a spelling that names no adapter that the caller can reach."""
    message = f"The adapter '{text[:256]}' does not exist"
    return ApiError.of("adapter_not_found", message, param="adapter")


def _read_name(body: dict[str, Any], field: str) -> str | None:
    value = body.get(field)
    if value is None:
        return None
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ApiError(400, f"'{field}' must be a non-empty printable string or null", param=field)
    if len(value) > 4096:
        raise ApiError(400, f"'{field}' is too long", param=field)
    return value


def _parse(text: str, identity: Identity) -> AskedAdapter:
    found = parse_adapter(text, identity.tenant)
    if found is None or not identity.can_reach(found[0]):
        raise adapter_not_found(text)
    return AskedAdapter(*found, text)


def _adapter_of_model(
    model: str, base_names: Collection[str], identity: Identity, has_adapter: HasAdapter
) -> AskedAdapter:
    found = parse_adapter(model, identity.tenant)
    if found is not None and identity.can_reach(found[0]) and has_adapter(*found):
        return AskedAdapter(*found, model)
    # The longest first: a base name may itself continue another one with a colon.
    for base in sorted(base_names, key=len, reverse=True):
        prefix = f"{base}:"
        if model.startswith(prefix) and len(model) > len(prefix):
            return _parse(model[len(prefix) :], identity)
    message = f"The model '{model[:256]}' does not exist"
    raise ApiError.of("model_not_found", message, param="model")


def _agree(from_model: AskedAdapter, asked: AskedAdapter) -> AskedAdapter:
    is_same_version = None in (from_model.version, asked.version) or (
        from_model.version == asked.version
    )
    if from_model.name != asked.name or not is_same_version:
        raise ApiError.of(
            "adapter_conflict",
            f"'model' names the adapter '{from_model.text[:256]}' and 'adapter' names "
            f"'{asked.text[:256]}'",
            param="adapter",
        )
    return from_model if asked.version is None else asked
