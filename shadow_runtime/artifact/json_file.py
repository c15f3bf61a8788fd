"""JSON from an untrusted file: capped in bytes and depth, without duplicate keys or non-numbers.

Runs in: API process | GPU worker.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any, NoReturn

from shadow_runtime.errors import AdapterConfigError, AdapterError, AdapterFileError
from shadow_runtime.quote import quote
from shadow_runtime.store.budget import MAX_CONFIG_BYTES

_MAX_DEPTH = 12
_MAX_DIGITS = 32
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def read_json_file(descriptor: int, name: str) -> dict[str, Any]:
    """Read and close `descriptor`, which must hold one JSON object.

    Args:
        descriptor: of a regular file, at its start.
        name: of the file, for messages.

    Raises:
        AdapterFileError: larger than `MAX_CONFIG_BYTES` or unreadable.
        AdapterConfigError: not one well-formed JSON object within the caps.
    """
    try:
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise AdapterFileError(f"{quote(name)} cannot be read: {error.strerror}") from None
    if len(data) > MAX_CONFIG_BYTES:
        raise AdapterFileError(f"{quote(name)} is over the limit of {MAX_CONFIG_BYTES} bytes")
    return parse_json_object(data, name, AdapterConfigError)


def parse_json_object(data: bytes, name: str, error_class: type[AdapterError]) -> dict[str, Any]:
    """Parse one JSON object.

    Args:
        data: UTF-8 text.
        name: what it is, for messages.
        error_class: what to raise.

    Raises:
        AdapterError: of class `error_class`, when `data` is not one JSON object, nests deeper than 12 levels,
            repeats a key, or holds NaN, Infinity or a number of absurd length.
    """
    _check_depth(data, name, error_class)
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_object,
            parse_constant=_refuse_constant,
            parse_int=_bounded_int,
            parse_float=_finite_float,
        )
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, _RefusedJsonError) else "it is malformed"
        raise error_class(f"{quote(name)} is not valid JSON: {reason}") from None
    if not isinstance(value, dict):
        raise error_class(f"{quote(name)} holds a JSON {type(value).__name__}, expected an object")
    return value


class _RefusedJsonError(ValueError):
    """Well-formed JSON that is refused."""


def _check_depth(data: bytes, name: str, error_class: type[AdapterError]) -> None:
    # Counting brackets inside strings too only makes the cap stricter, and needs no parser that could overflow.
    depth = deepest = 0
    for byte in data.translate(None, _NOT_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    if deepest > _MAX_DEPTH:
        raise error_class(f"{quote(name)} nests deeper than {_MAX_DEPTH} levels")


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _RefusedJsonError(f"key {quote(repeated)} appears twice")
    return result


def _refuse_constant(text: str) -> NoReturn:
    raise _RefusedJsonError(f"{text} is not a number")


def _bounded_int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise _RefusedJsonError(f"an integer has {len(text)} digits")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _RefusedJsonError(f"number {quote(text)} is out of range")
    return value
