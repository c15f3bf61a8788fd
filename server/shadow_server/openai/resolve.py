"""Which adapter a request asks for.

Runs in: API process.

    model               adapter         meaning
    base or absent      absent or null  the base model
    base or absent      A               adapter A
    A, or base:A        absent, null, A adapter A
    A, or base:A        B               400 adapter_conflict
    anything else       any             404 model_not_found
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from shadow_server.errors import ApiError


def resolve_adapter(
    body: dict[str, Any], base_names: Collection[str], has_adapter: Callable[[str], bool]
) -> str | None:
    """Return the name of the adapter that `body` asks for, None for the base model.

    Removes `adapter` from the body: what is left are the engine's own fields. That an adapter is
    named does not mean that it exists; leasing it finds out.

    Raises:
        ApiError: 400 for a mistyped field or a conflict, 404 for an unknown model.
    """
    asked = _read_name(body, "adapter")
    body.pop("adapter", None)
    model = _read_name(body, "model")
    from_model = None
    if model is not None and model not in base_names:
        from_model = _adapter_of_model(model, base_names, has_adapter)
    if asked is not None and from_model is not None and asked != from_model:
        raise ApiError(
            400,
            f"'model' names the adapter '{from_model}' and 'adapter' names '{asked}'",
            code="adapter_conflict",
            param="adapter",
        )
    return asked if asked is not None else from_model


def _read_name(body: dict[str, Any], field: str) -> str | None:
    value = body.get(field)
    if value is None:
        return None
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ApiError(400, f"'{field}' must be a non-empty printable string or null", param=field)
    if len(value) > 4096:
        raise ApiError(400, f"'{field}' is too long", param=field)
    return value


def _adapter_of_model(
    model: str, base_names: Collection[str], has_adapter: Callable[[str], bool]
) -> str:
    if has_adapter(model):
        return model
    # The longest first: a base name may itself continue another one with a colon.
    for base in sorted(base_names, key=len, reverse=True):
        prefix = f"{base}:"
        if model.startswith(prefix) and len(model) > len(prefix):
            return model[len(prefix) :]
    raise ApiError(
        404, f"The model '{model[:256]}' does not exist", code="model_not_found", param="model"
    )
