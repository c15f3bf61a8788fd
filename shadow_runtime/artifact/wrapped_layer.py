"""Which decoder layers a peft config wraps, matched as peft matches module names.

Runs in: API process | GPU worker.
"""

from __future__ import annotations

import re

from shadow_runtime.artifact.field import ConfigFields
from shadow_runtime.errors import AdapterConfigError
from shadow_runtime.quote import quote

_MAX_PATTERN = 256
_MAX_QUANTIFIERS = 4
# A quantified group can make matching exponential, up to four plain quantifiers on a short name cannot; flags
# and look-arounds could hide one.
_QUANTIFIER = re.compile(r"(?<!\\)(?:\\\\)*[*+{?]")
_UNSAFE = re.compile(r"\)[*+{]|\(\?(?!:)")


def wrapped_layers(fields: ConfigFields, layer_stack: str, num_layers: int) -> frozenset[int]:
    """Return the indices of the base layers that `fields` say are wrapped.

    Args:
        fields: of adapter_config.json.
        layer_stack: dotted path of the decoder layers, `model.layers` say.
        num_layers: of the base.

    Raises:
        AdapterConfigError: a field is mistyped or its pattern too complex to evaluate safely.
    """
    targets, excluded = (
        _module_names(fields, "target_modules"),
        _module_names(fields, "exclude_modules"),
    )
    has_layer_list = _has_layer_list(fields)
    names = {layer: f"{layer_stack}.{layer}" for layer in range(num_layers)}
    return frozenset(
        layer
        for layer, name in names.items()
        if not (excluded and _is_match(excluded, name, True))
        and (targets is None or _is_match(targets, name, not has_layer_list))
    )


def _module_names(fields: ConfigFields, key: str) -> re.Pattern[str] | frozenset[str] | None:
    value = fields.values.get(key)
    if value is None:
        return None
    return _compile(value, key) if isinstance(value, str) else frozenset(fields.get_texts(key))


def _compile(pattern: str, key: str) -> re.Pattern[str]:
    is_simple = (
        len(pattern) <= _MAX_PATTERN
        and len(_QUANTIFIER.findall(pattern)) <= _MAX_QUANTIFIERS
        and not _UNSAFE.search(pattern)
    )
    if not is_simple:
        raise AdapterConfigError(
            f"{quote(key)} is a pattern too complex to evaluate safely; list the layers instead"
        )
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        raise AdapterConfigError(f"{quote(key)} is not a valid pattern") from None


def _is_match(targets: re.Pattern[str] | frozenset[str], name: str, allow_suffix: bool) -> bool:
    if isinstance(targets, re.Pattern):
        return targets.fullmatch(name) is not None
    if name in targets:
        return True
    # peft looks for a layer index inside the name, followed by a dot; a whole block has none, so with
    # layers_to_transform only full names match.
    return allow_suffix and any(name.endswith(f".{target}") for target in targets)


def _has_layer_list(fields: ConfigFields) -> bool:
    value = fields.values.get("layers_to_transform")
    layers = value if isinstance(value, list) else [value]
    if value is not None and any(
        type(layer) is not int or not 0 <= layer < 1 << 16 for layer in layers
    ):
        raise AdapterConfigError("'layers_to_transform' is not a list of layer indices")
    return value is not None and value != []
