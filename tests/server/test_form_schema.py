"""Which forms the fuzz tests take for valid: as they are sent, not as the tool holds them."""

import pytest
from schemathesis.transport.serialization import Binary

from schema_fuzz import form_satisfies

FILE = {"type": "string", "format": "binary"}
SCHEMA = {
    "type": "object",
    "properties": {"files": {"type": "array", "items": FILE}, "name": {"type": "string"}},
    "required": ["files"],
}


@pytest.mark.parametrize(
    ("form", "is_valid"),
    [
        ({"files": [Binary(b"x")]}, True),
        ({"files": Binary(b"x")}, True),
        ({"files": "text"}, True),
        ({"files": ["text", Binary(b"x")], "name": "n"}, True),
        ({}, False),
        ({"name": "n"}, False),
        ({"files": [3, Binary(b"x")]}, False),
        ({"files": [Binary(b"x")], "name": 3}, False),
    ],
)
def test_forms(form, is_valid):
    assert form_satisfies(form, SCHEMA) is is_valid
