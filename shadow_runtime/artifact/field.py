"""Typed access to the fields of an untrusted config.

Runs in: API process | GPU worker.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from shadow_runtime.errors import AdapterConfigError
from shadow_runtime.quote import quote, quote_first

MAX_SIZE = 1 << 31
"""Above this no config integer is a size; the server's limits are checked afterwards."""

_MAX_SCALE = 1e6


class ConfigFields:
    """One JSON object with its name; every getter raises `AdapterConfigError` naming the field.

    Args:
        values: the parsed object.
        name: of the file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], name: str) -> None:
        self.values = values
        self.name = name

    def get_size(self, key: str, default: int | None = None) -> int:
        """Return a positive integer; `default` where the field is absent."""
        value = self.find_size(key)
        if value is not None:
            return value
        if default is None:
            raise AdapterConfigError(f"{quote(self.name)} lacks {quote(key)}")
        return default

    def find_size(self, key: str) -> int | None:
        """Return a positive integer, or None where the field is absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if type(value) is not int or not 1 <= value <= MAX_SIZE:
            raise self._wrong(key, value, f"an integer from 1 to {MAX_SIZE}")
        return value

    def get_scale(self, key: str, default: float) -> float:
        """Return a finite number of magnitude at most a million."""
        value = self.values.get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > _MAX_SCALE:
            raise self._wrong(key, value, "a finite number")
        return float(value)

    def get_flag(self, key: str, default: bool) -> bool:
        """Return a boolean."""
        value = self.values.get(key, default)
        if type(value) is not bool:
            raise self._wrong(key, value, "true or false")
        return value

    def find_text(self, key: str) -> str | None:
        """Return a string, or None where the field is absent or null."""
        value = self.values.get(key)
        if value is not None and type(value) is not str:
            raise self._wrong(key, value, "a string")
        return value

    def get_texts(self, key: str) -> tuple[str, ...]:
        """Return a list of strings; empty where the field is absent or null."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or any(type(item) is not str for item in value):
            raise self._wrong(key, value, "a list of strings")
        return tuple(value)

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Raise unless every other field is null, false or empty: what is unknown might change the maths."""
        unknown = [key for key, value in self.values.items() if key not in known and value]
        if unknown:
            raise AdapterConfigError(
                f"{quote(self.name)} has fields that this server does not know: {quote_first(unknown)}"
            )

    def _wrong(self, key: str, value: object, expected: str) -> AdapterConfigError:
        return AdapterConfigError(
            f"{quote(self.name)} has {quote(key)} = {quote(value)}, expected {expected}"
        )
