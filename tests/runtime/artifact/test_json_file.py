"""JSON from strangers: objects, or one documented error."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow_runtime.artifact.json_file import parse_json_object
from shadow_runtime.errors import AdapterConfigError


def parse(data: bytes) -> dict[str, object]:
    """Parse with the error of a config."""
    return parse_json_object(data, "x.json", AdapterConfigError)


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**12), 10**12),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_characters="[]{}"), max_size=8),
    ),
    lambda children: st.one_of(
        st.lists(children, max_size=3), st.dictionaries(st.text(max_size=3), children, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=4))
def test_ordinary_objects_pass(value: dict[str, object]) -> None:
    text = json.dumps(value)
    if text.count("[") + text.count("{") <= 12:
        assert parse(text.encode()) == value


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=64), st.text('{}[]",:0123456789eE+-.tfn', max_size=32)))
def test_any_bytes_give_an_object_or_the_error(data: bytes | str) -> None:
    with contextlib.suppress(AdapterConfigError):
        assert isinstance(parse(data if isinstance(data, bytes) else data.encode()), dict)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": {"b": 1, "b": 2}}', "twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": [-Infinity]}', "Infinity"),
        ('{"a": 1e400}', "range"),
        ('{"a": ' + "1" * 33 + "}", "digits"),
        ('{"a": ' + "[" * 12 + "]" * 12 + "}", "deeper"),
        ('{"a": 1} x', "malformed"),
        ("null", "NoneType"),
    ],
)
def test_refusals_say_why(text: str, reason: str) -> None:
    with pytest.raises(AdapterConfigError, match=reason):
        parse(text.encode())


def test_eleven_levels_pass() -> None:
    assert parse(b'{"a": ' + b"[" * 11 + b"]" * 11 + b"}")
