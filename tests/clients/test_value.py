"""Answers as values: newer servers stay readable, other programs' answers are refused."""

import pytest

from shadow_client.adapter import Tensor, Validation
from shadow_client.error import BadAnswerError
from shadow_client.generation import Completion, Usage
from shadow_client.value import decode

TENSOR = {"name": "a", "dtype": "F32", "shape": [2, 3], "num_bytes": 24, "is_finite": None}
COMPLETION = {"id": "1", "model": "m", "created": 0, "choices": [{"index": 0, "text": "hi"}]}


def test_nested_values():
    made = decode(Completion, COMPLETION | {"usage": {"prompt_tokens": 1, "total_tokens": 2}})
    assert (made.text, made.usage) == ("hi", Usage(1, 2, 0))
    assert decode(Tensor, TENSOR).shape == (2, 3)


def test_unknown_fields_are_ignored():
    assert decode(Tensor, TENSOR | {"colour": "red"}) == decode(Tensor, TENSOR)


@pytest.mark.parametrize(
    ("cls", "data", "message"),
    [
        (Tensor, [], "expected an object"),
        (Tensor, {k: v for k, v in TENSOR.items() if k != "dtype"}, "lacks Tensor.dtype"),
        (Tensor, TENSOR | {"num_bytes": "24"}, "a str for Tensor.num_bytes"),
        (Tensor, TENSOR | {"num_bytes": True}, "a bool for Tensor.num_bytes"),
        (Tensor, TENSOR | {"shape": 3}, "an? int for Tensor.shape"),
        (Tensor, TENSOR | {"name": None}, "NoneType for Tensor.name"),
        (Completion, COMPLETION | {"choices": [3]}, "expected an object"),
        (Validation, {"is_valid": 1}, "for Validation.is_valid"),
    ],
)
def test_what_is_not_an_answer_is_refused(cls, data, message):
    with pytest.raises(BadAnswerError, match=message):
        decode(cls, data)
