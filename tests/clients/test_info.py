"""What headers say, and malformed ones."""

from datetime import UTC, datetime

import pytest

from shadow_client.info import RateLimit, read_duration, read_info, read_retry_after


def test_who_answered_and_the_rates():
    info = read_info(
        200,
        {
            "X-Request-Id": "r1",
            "X-Shadow-Adapter": "acme/support",
            "X-Shadow-Adapter-Version": "3",
            "X-Shadow-Adapter-Digest": "sha256:ab",
            "X-RateLimit-Limit-Requests": "60",
            "X-RateLimit-Remaining-Requests": "59",
            "X-RateLimit-Reset-Requests": "1m2s",
        },
    )
    assert (info.request_id, info.adapter, info.adapter_version) == ("r1", "acme/support", 3)
    assert info.adapter_digest == "sha256:ab"
    assert info.request_rate == RateLimit(60, 59, 62.0)
    assert info.token_rate is None


def test_malformed_headers_count_as_absent():
    info = read_info(
        200,
        {
            "x-shadow-adapter-version": "²",
            "retry-after": "soon",
            "x-ratelimit-limit-tokens": "9",
            "x-ratelimit-remaining-tokens": "-1",
            "x-ratelimit-limit-requests": "9" * 5000,
            "x-ratelimit-remaining-requests": "9",
        },
    )
    assert (info.adapter_version, info.retry_after_seconds, info.token_rate) == (None, None, None)
    assert info.request_rate is None


@pytest.mark.parametrize("text", ["", "1.5", "-5", "²", f"Wed, 21 Oct {10**20} 07:28:00 GMT"])
def test_no_seconds_and_no_date_asks_for_no_wait(text):
    assert read_retry_after(text) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0),
        ("120ms", 0.12),
        ("8s", 8),
        ("6m0s", 360),
        ("1h0m5s", 3605),
        ("x", None),
        ("", None),
    ],
)
def test_durations(text, seconds):
    assert read_duration(text) == seconds


@pytest.mark.parametrize("zone", ["GMT", "-0000"])
def test_a_date_to_retry_after(zone):
    now = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)
    assert read_retry_after(f"Wed, 25 Nov 2026 12:00:09 {zone}", now) == 9.0
    assert read_retry_after(f"Wed, 25 Nov 2026 11:00:00 {zone}", now) == 0.0
    assert read_retry_after("12") == 12.0
