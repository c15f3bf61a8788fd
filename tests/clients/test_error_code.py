"""The client's exceptions against the table of errors that the server is documented with."""

import re

import pytest

from shadow_client import error, error_code
from shadow_client.error import STATUS_ERRORS, ApiError, status_error
from shadow_client.error_code import CODE_ERRORS
from source_tree import ROOT

ROW = re.compile(r"^\| (\d+) \| `(\w+)` \| `\w+` \| (yes|no) \| (.+) \|$", re.MULTILINE)
TABLE = {
    code: (int(status), retry == "yes", meaning)
    for status, code, retry, meaning in ROW.findall((ROOT / "docs" / "errors.md").read_text())
}


def test_the_table_was_found():
    assert len(TABLE) > 40


def test_codes_are_those_of_the_table():
    assert CODE_ERRORS.keys() == TABLE.keys()


@pytest.mark.parametrize("code", TABLE)
def test_a_code_has_its_status_and_its_retry(code):
    cls, (status, is_retryable, _) = CODE_ERRORS[code], TABLE[code]
    assert (cls.default_status, cls.is_retryable) == (status, is_retryable)
    assert issubclass(cls, status_error(status))


@pytest.mark.parametrize("code", [c for c, cls in CODE_ERRORS.items() if cls.own_code is not None])
def test_a_class_of_its_own_means_one_code(code):
    cls = CODE_ERRORS[code]
    assert cls.own_code == code
    assert cls.__doc__ == TABLE[code][2]
    assert cls("x").code == code


def test_no_class_is_left_over():
    own = {v for v in vars(error_code).values() if isinstance(v, type) and issubclass(v, ApiError)}
    made_here = {cls for cls in own if cls.__module__ == error_code.__name__}
    assert made_here == {cls for cls in CODE_ERRORS.values() if cls.own_code is not None}


def test_the_drawn_tree_has_every_status():
    assert {str(status) for status in STATUS_ERRORS} <= set(re.findall(r"\d{3}", error.__doc__))
    assert status_error(418) is ApiError
    assert status_error(599) is error.ServerError
