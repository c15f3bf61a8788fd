"""What a request is charged in the end, whatever the order of reports and ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow_server.tenancy.bucket import TokenBucket
from shadow_server.tenancy.usage import UsageLedger

LIMIT = 1000


def opened(num_tokens=100, max_ended=4096):
    bucket = TokenBucket(LIMIT, lambda: 0.0)
    ledger = UsageLedger(max_ended)
    assert bucket.try_take(num_tokens)
    return ledger, bucket, ledger.open("tag", bucket, num_tokens)


def test_what_was_not_needed_comes_back():
    ledger, bucket, reservation = opened()
    reservation.has_run = True
    ledger.observe_usage("tag", 10, 20)
    assert bucket.remaining == LIMIT - 100
    ledger.close("tag")
    assert bucket.remaining == LIMIT - 30


def test_what_was_taken_beyond_is_charged():
    ledger, bucket, reservation = opened()
    reservation.has_run = True
    ledger.observe_usage("tag", 100, 300)
    ledger.close("tag")
    assert bucket.remaining == LIMIT - 400


def test_a_request_that_never_ran_costs_nothing():
    ledger, bucket, _ = opened()
    ledger.close("tag")
    assert bucket.remaining == LIMIT


def test_a_request_that_ran_without_a_report_costs_what_was_reserved():
    ledger, bucket, reservation = opened()
    reservation.has_run = True
    ledger.close("tag")
    assert bucket.remaining == LIMIT - 100
    # An abort is told late.
    ledger.observe_usage("tag", 5, 5)
    assert bucket.remaining == LIMIT - 10
    ledger.observe_usage("tag", 0, 7)
    assert bucket.remaining == LIMIT - 17


def test_unknown_tags_are_nobodys():
    ledger, bucket, _ = opened()
    ledger.observe_usage("other", 10, 10)
    ledger.close("other")
    assert bucket.remaining == LIMIT - 100


def test_ended_requests_are_remembered_up_to_a_bound():
    ledger, bucket, _ = opened(max_ended=3)
    for index in range(10):
        ledger.open(f"t{index}", bucket, 0)
        ledger.close(f"t{index}")
    assert len(ledger) == 1 + 3
    ledger.close("tag")
    assert len(ledger) == 3


@given(
    reserved=st.integers(0, 300),
    reports=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), max_size=6),
    end_after=st.integers(0, 6),
    has_run=st.booleans(),
)
def test_the_charge_is_the_sum_of_the_reports_in_any_order(reserved, reports, end_after, has_run):
    ledger, bucket, reservation = opened(reserved)
    reservation.has_run = has_run
    for index, report in enumerate(reports):
        if index == end_after:
            ledger.close("tag")
        ledger.observe_usage("tag", *report)
    if end_after >= len(reports):
        ledger.close("tag")
    owed = sum(p + g for p, g in reports) if reports else reserved * has_run
    assert bucket.seconds_until_full() == pytest.approx(owed * 60 / LIMIT)
