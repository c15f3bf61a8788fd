"""When a request is sent again: the table in the module, row by row."""

import pytest

from shadow_client.error import ApiError, BadAnswerError, ConnectionFailedError, TimedOutError
from shadow_client.error_code import CODE_ERRORS
from shadow_client.info import ResponseInfo
from shadow_client.retry import RetryPolicy, Safety, is_worth_it

READ, REPEATABLE, ONCE = Safety
EVERY, NONE = {READ, REPEATABLE, ONCE}, set()


def refused(code, **fields):
    return CODE_ERRORS[code]("x", **fields)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionFailedError("x", was_sent=False), EVERY),
        (TimedOutError("x", was_sent=False), EVERY),
        (ConnectionFailedError("x"), {READ}),
        (TimedOutError("x"), {READ}),
        (refused("rate_limit_exceeded"), EVERY),
        (refused("server_overloaded"), EVERY),
        (refused("not_ready"), EVERY),
        (refused("catalog_unavailable"), {READ, REPEATABLE}),
        (refused("adapter_loading"), {READ, REPEATABLE}),
        (refused("insufficient_quota"), NONE),
        (refused("rate_limit_exceeded", should_retry=False), NONE),
        (refused("adapter_not_found"), NONE),
        (refused("internal_error"), NONE),
        (ApiError("x", status=502), {READ}),
        (ApiError("x", status=504), {READ}),
        (ApiError("x", status=500), NONE),
        (BadAnswerError("x"), NONE),
    ],
)
def test_who_is_sent_again(error, expected):
    assert {safety for safety in Safety if is_worth_it(safety, error)} == expected


def wait(num_sent=1, retry_after=None, random=lambda: 0.0, **fields):
    error = refused("server_overloaded", info=ResponseInfo(retry_after_seconds=retry_after))
    return RetryPolicy(random=random, **fields).find_wait(num_sent, READ, error)


def test_the_number_of_retries_is_kept():
    assert wait(num_sent=2, max_retries=2) is not None
    assert wait(num_sent=3, max_retries=2) is None
    assert wait(num_sent=1, max_retries=0) is None


def test_waits_double_up_to_the_cap_and_half_of_them_is_random():
    fields = {"max_retries": 9, "first_wait_seconds": 1.0, "longest_wait_seconds": 5.0}
    assert [wait(n, **fields) for n in (1, 2, 3, 4, 9)] == [0.5, 1.0, 2.0, 2.5, 2.5]
    assert wait(3, random=lambda: 1.0, **fields) == 4.0


def test_a_retry_is_never_earlier_than_asked():
    assert wait(retry_after=7.0) == 7.0
    assert wait(retry_after=7.0, random=lambda: 1.0) == 8.0
    assert wait(retry_after=0.0, random=lambda: 1.0) == pytest.approx(0.05)


def test_a_wait_over_the_cap_is_not_begun():
    assert wait(retry_after=30.0, longest_wait_seconds=30.0) == 30.0
    assert wait(retry_after=31.0, longest_wait_seconds=30.0) is None
