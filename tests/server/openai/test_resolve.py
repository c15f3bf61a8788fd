"""The rule of names as a table, over bases whose own names hold a colon."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow_server.errors import ApiError
from shadow_server.openai.resolve import resolve_adapter

BASES = ("org/base", "org/base:fp8")
KNOWN = {"math", "poet"}


def resolve(**body):
    return resolve_adapter(body, BASES, KNOWN.__contains__)


@pytest.mark.parametrize(
    ("body", "adapter"),
    [
        ({}, None),
        ({"model": "org/base"}, None),
        ({"model": "org/base:fp8"}, None),
        ({"model": "org/base:math"}, "math"),
        ({"model": "org/base:fp8:math"}, "math"),
        ({"model": "math"}, "math"),
        ({"adapter": "nobody"}, "nobody"),
        ({"model": "org/base:nobody"}, "nobody"),
    ],
)
def test_table(body, adapter):
    assert resolve(**body) == adapter


def test_adapter_is_taken_out_of_the_body():
    body = {"model": "org/base", "adapter": "math", "prompt": "x"}
    assert resolve_adapter(body, BASES, KNOWN.__contains__) == "math"
    assert body == {"model": "org/base", "prompt": "x"}


values = st.one_of(st.none(), st.integers(), st.text(max_size=20), st.lists(st.integers()))
names = st.sampled_from([*BASES, *KNOWN, "org/base:math", "org/base:poet", "nobody"])


@given(model=st.one_of(values, names), adapter=st.one_of(values, names))
def test_any_pair_is_resolved_or_refused(model, adapter):
    try:
        answer = resolve(model=model, adapter=adapter)
    except ApiError as error:
        assert error.rule.status in (400, 404)  # noqa: PT017
        return
    # What comes out was asked for by one of the two fields, and by neither against the other.
    if adapter is not None:
        assert answer == adapter
    elif answer is not None:
        assert str(model).endswith(answer)
    else:
        assert model is None or model in BASES
