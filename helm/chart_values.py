"""values.yaml as it is documented: every value with its default, its description and its JSON schema.

A comment of `# -- text` right above a key describes a value, `# @schema {json}` adds to the schema that its default
implies. A key without a description holds described keys; every value has a description.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

_KEY = re.compile(r"( *)([A-Za-z]\w*):")
_INDENT = 2
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


class ValuesError(Exception):
    """values.yaml does not describe itself; one sentence."""


@dataclass(frozen=True, slots=True)
class Value:
    """One described value.

    Attributes:
        path: keys from the top.
        default: what values.yaml has.
        description: for people.
        added_schema: of `# @schema`.
    """

    path: tuple[str, ...]
    default: Any
    description: str
    added_schema: dict[str, Any]

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the value: its default's type, and what was added."""
        return {"description": self.description, **_implied(self.default), **self.added_schema}


@dataclass(slots=True)
class _Comment:
    description: list[str] = field(default_factory=list)
    schema: dict[str, Any] = field(default_factory=dict)


def read_values(text: str) -> list[Value]:
    """Return the described values of a values.yaml, in its order.

    Raises:
        ValuesError: a value has no description, or a schema is no JSON.
    """
    defaults = yaml.safe_load(text)
    values: list[Value] = []
    path: list[str] = []
    comment = _Comment()
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            _read_comment(line.strip(), number, comment)
            continue
        if match := _KEY.match(line):
            path = [*path[: len(match[1]) // _INDENT], match[2]]
            if not (values and values[-1].path == tuple(path[: len(values[-1].path)])):
                values += _described(tuple(path), defaults, comment, number)
        comment = _Comment()
    return values


def schema_of(values: list[Value]) -> dict[str, Any]:
    """Return the JSON schema of a whole values.yaml: nothing that it does not name is taken."""
    root = _section()
    for value in values:
        section = root
        for key in value.path[:-1]:
            section = section["properties"].setdefault(key, _section())
        section["properties"][value.path[-1]] = value.schema
    # Helm itself hands this to every chart that another one holds.
    root["properties"]["global"] = {"type": "object"}
    return {"$schema": "http://json-schema.org/draft-07/schema#", **root}


def table_of(values: list[Value]) -> str:
    """Return the Markdown table of the values."""
    rows = ["| value | default | meaning |", "|---|---|---|"]
    for value in values:
        default = json.dumps(value.default)
        rows.append(f"| `{'.'.join(value.path)}` | `{default}` | {_cell(value.description)} |")
    return "\n".join(rows)


def _read_comment(line: str, number: int, comment: _Comment) -> None:
    text = line.lstrip("#").strip()
    if text.startswith("-- "):
        comment.description = [text.removeprefix("-- ")]
    elif text.startswith("@schema "):
        try:
            comment.schema |= json.loads(text.removeprefix("@schema "))
        except ValueError as error:
            raise ValuesError(f"line {number}: the schema is no JSON: {error}") from None
    elif comment.description:
        comment.description.append(text)


def _described(path: tuple[str, ...], defaults: Any, comment: _Comment, number: int) -> list[Value]:
    for key in path:
        defaults = defaults[key]
    if comment.description:
        return [Value(path, defaults, " ".join(comment.description), comment.schema)]
    if isinstance(defaults, dict) and defaults:
        return []
    raise ValuesError(f"line {number}: {'.'.join(path)} has no description (`# -- ...`)")


def _implied(default: Any) -> dict[str, Any]:
    if isinstance(default, dict):
        return {"type": "object"}
    if isinstance(default, list):
        return {"type": "array"}
    implied: dict[str, Any] = {"type": _TYPES[type(default)]}
    if implied["type"] == "integer":
        implied["minimum"] = 0
    return implied


def _section() -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": {}}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
