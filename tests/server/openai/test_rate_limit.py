"""Rates as OpenAI's headers."""

import math

import pytest

from shadow_server.openai.rate_limit import rate_headers, refusal_response, spell_duration
from shadow_server.tenancy.refusal import Rate, RefusalError

RATES = (Rate("requests", 60, 59, 1.0), Rate("tokens", 150_000, 149_984, 360.0))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.12, "120ms"),
        (0.9995, "1s"),
        (1, "1s"),
        (1.2, "2s"),
        (59.1, "1m0s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (3605, "1h0m5s"),
        (90_061, "25h1m1s"),
    ],
)
def test_durations(seconds, text):
    assert spell_duration(seconds) == text


def test_headers():
    assert rate_headers(RATES) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert rate_headers(()) == {}


@pytest.mark.parametrize(("wait", "retry_after"), [(0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2")])
def test_refusals_tell_when_to_come_again(wait, retry_after):
    answer = refusal_response(RefusalError("rate_limit_exceeded", "no", wait, RATES))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, retry_after)
    assert answer.headers["x-should-retry"] == "true"
    assert answer.headers["x-ratelimit-limit-tokens"] == "150000"
    overload = refusal_response(RefusalError("server_overloaded", "no", wait))
    assert (overload.status_code, overload.headers["retry-after"]) == (503, retry_after)


def test_what_never_passes_is_not_to_be_tried_again():
    answer = refusal_response(RefusalError("rate_limit_exceeded", "no", math.inf, RATES))
    assert answer.status_code == 429
    assert "retry-after" not in answer.headers
    assert answer.headers["x-should-retry"] == "false"
