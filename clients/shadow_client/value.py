"""From JSON to frozen dataclasses: known fields are checked, unknown ones ignored, so newer servers stay readable.

Only what answers have is understood: str, int, float, bool, None, mappings, and tuples of these or of dataclasses.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from shadow_client.error import BadAnswerError

ValueT = TypeVar("ValueT")


def decode(cls: type[ValueT], data: object) -> ValueT:
    """Return the dataclass `cls` made from a JSON object.

    Raises:
        BadAnswerError: not an object, a field is missing that has no default, or one has another type.
    """
    if not isinstance(data, Mapping):
        raise BadAnswerError(f"expected an object for {cls.__name__}, got {type(data).__name__}")
    values, key = {}, cast(Any, cls)
    for name, hint, is_required in _fields(key):
        if name in data:
            values[name] = _convert(hint, data[name], f"{cls.__name__}.{name}")
        elif is_required:
            raise BadAnswerError(f"the answer lacks {cls.__name__}.{name}")
    return cls(**values)


@functools.cache
def _fields(cls: Any) -> tuple[tuple[str, Any, bool], ...]:
    hints, missing = get_type_hints(cls), dataclasses.MISSING
    return tuple(
        (f.name, hints[f.name], f.default is missing and f.default_factory is missing)
        for f in dataclasses.fields(cls)
    )


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (a for a in arguments if a is not type(None))
        return _convert(inner, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise _mistyped(value, where)
        return tuple(_convert(arguments[0], item, where) for item in value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return decode(hint, value)
    return _check_plain(hint, origin, value, where)


def _check_plain(hint: Any, origin: Any, value: Any, where: str) -> Any:
    # A literal is open: a newer server may have another state.
    expected = str if origin is Literal else Mapping if origin is not None else hint
    if expected is Any:
        return value
    if expected is float and type(value) is int:
        return float(value)
    if not isinstance(value, expected) or (type(value) is bool and expected is not bool):
        raise _mistyped(value, where)
    return value


def _mistyped(value: object, where: str) -> BadAnswerError:
    return BadAnswerError(f"the answer has a {type(value).__name__} for {where}")
