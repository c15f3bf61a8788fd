"""Guesses of what a request may take, by hand-counted examples."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow_server.openai.estimate import UNBOUNDED_ANSWER_TOKENS, estimate_tokens

LEN = 4096


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"prompt": "x" * 40, "max_tokens": 10}, 11 + 10),
        ({"prompt": "x" * 40}, 11 + 16),
        ({"prompt": "x" * 40, "max_tokens": None}, 11 + UNBOUNDED_ANSWER_TOKENS),
        ({"prompt": [1, 2, 3], "max_tokens": 10}, 3 + 10),
        ({"prompt": [[1, 2, 3], [4]], "max_tokens": 10}, 4 + 20),
        ({"prompt": ["x" * 4, "x" * 8], "max_tokens": 10, "n": 3}, 2 + 3 + 60),
        ({"prompt": "", "max_tokens": 0}, 1),
        ({"prompt": "é" * 40, "max_tokens": 0}, 21),
        ({"prompt": "x", "max_tokens": 10**9}, 1 + LEN),
        ({"prompt": [0] * 10_000, "max_tokens": 1}, LEN + 1),
        ({"messages": [{"role": "user", "content": "x" * 40}]}, 4 + 11 + UNBOUNDED_ANSWER_TOKENS),
        ({"messages": [{"content": "x" * 4}, {"content": None}], "max_tokens": 5}, 4 + 2 + 4 + 5),
        ({"messages": [{"content": "x"}], "max_completion_tokens": 7, "max_tokens": 9}, 5 + 7),
        (
            {"messages": [{"content": [{"type": "text", "text": "x" * 8}, {"type": "x"}]}], "n": 2}
            | {"max_tokens": 5},
            4 + 3 + 10,
        ),
    ],
)
def test_examples(body, tokens):
    assert estimate_tokens(body, LEN) == tokens


junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner)
    ),
    max_leaves=10,
)


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("prompt", "messages", "max_tokens", "max_completion_tokens", "n", "x"), junk
        ),
    )
)
def test_any_body_has_a_bounded_guess(body):
    assert 0 <= estimate_tokens(body, LEN) < 10**15
