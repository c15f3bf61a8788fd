"""A rate with a burst, against an account of its own that is kept in fractions."""

import math
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shadow_server.tenancy.bucket import TokenBucket


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_minutes_worth_comes_at_once_and_then_the_rate(clock):
    bucket = TokenBucket(60, clock)
    assert bucket.try_take(60)
    assert not bucket.try_take(1)
    clock.now += 0.5
    assert not bucket.try_take(1)
    clock.now += 0.5
    assert bucket.try_take(1)
    assert not bucket.try_take(1)
    clock.now += 3600
    assert bucket.remaining == 60


def test_wait_is_exact(clock):
    bucket = TokenBucket(30, clock)
    bucket.charge(30)
    assert bucket.seconds_until(1) == pytest.approx(2.0)
    assert bucket.seconds_until(30) == bucket.seconds_until_full() == pytest.approx(60.0)
    assert bucket.seconds_until(31) == math.inf
    wait = bucket.seconds_until(7)
    clock.now += wait - 0.01
    assert not bucket.try_take(7)
    clock.now += 0.02
    assert bucket.try_take(7)


def test_debt_is_waited_for(clock):
    bucket = TokenBucket(60, clock)
    bucket.charge(90)
    assert bucket.remaining == 0
    assert bucket.seconds_until(1) == pytest.approx(31.0)


def test_changing_the_limit_keeps_what_was_taken(clock):
    bucket = TokenBucket(60, clock)
    bucket.charge(50)
    bucket.set_limit(100)
    assert bucket.remaining == 50
    bucket.set_limit(20)
    assert bucket.remaining == 0
    assert bucket.seconds_until(1) == pytest.approx(31 * 60 / 20)
    bucket.set_limit(1000)
    clock.now += 600
    assert bucket.remaining == 1000


def test_a_smaller_burst_saves_no_more(clock):
    bucket = TokenBucket(60, clock, burst=5)
    assert bucket.remaining == 5
    assert [bucket.try_take(1) for _ in range(6)] == [True] * 5 + [False]
    assert bucket.seconds_until(1) == pytest.approx(1.0)
    assert bucket.seconds_until_full() == pytest.approx(5.0)
    assert bucket.seconds_until(6) == math.inf
    clock.now += 600
    assert bucket.remaining == 5


def test_of_the_limit_nothing_is_used_when_full_and_all_when_empty(clock):
    bucket = TokenBucket(60, clock, burst=5)
    assert bucket.peek_used() == 0
    bucket.charge(1)
    assert bucket.peek_used() == pytest.approx(12)
    bucket.charge(4)
    assert bucket.peek_used() == pytest.approx(60)


def test_a_burst_is_never_more_than_a_minute_s_tokens(clock):
    bucket = TokenBucket(60, clock, burst=1000)
    assert (bucket.burst, bucket.remaining) == (60, 60)
    bucket.set_limit(20, 1000)
    assert bucket.burst == 20


def test_changing_the_burst_keeps_what_was_taken(clock):
    bucket = TokenBucket(60, clock, burst=10)
    bucket.charge(8)
    bucket.set_limit(60, 30)
    assert bucket.remaining == 22
    bucket.set_limit(60)
    assert bucket.remaining == 52


def test_a_clock_that_jumps_back_gives_nothing(clock):
    bucket = TokenBucket(60, clock)
    bucket.charge(60)
    clock.now -= 500
    assert bucket.remaining == 0
    clock.now += 1
    assert bucket.remaining == 1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 150)),
        st.tuples(st.just("charge"), st.integers(0, 150)),
        st.tuples(st.just("refund"), st.integers(0, 150)),
        # Whole eighths, so that a float account of an exact rate is exact too.
        st.tuples(st.just("wait"), st.integers(0, 480)),
    ),
    max_size=60,
)


@given(limit=st.sampled_from([60, 120, 480]), burst=st.sampled_from([1, 7, 60]), steps=STEPS)
@example(limit=60, burst=60, steps=[("take", 60), ("wait", 480), ("take", 60)])
def test_never_more_than_limit_and_burst_and_refunds_never_exceed(limit, burst, steps):
    clock = Clock()
    bucket = TokenBucket(limit, clock, burst=burst)
    rate = Fraction(limit, 60)
    level, elapsed, granted, charged, refunded = Fraction(burst), Fraction(0), 0, 0, 0
    for kind, amount in steps:
        if kind == "wait":
            clock.now += amount / 8
            elapsed += Fraction(amount, 8)
            level = min(Fraction(burst), level + rate * Fraction(amount, 8))
        elif kind == "take":
            was_granted = bucket.try_take(amount)
            assert was_granted == (level >= amount)
            level -= amount if was_granted else 0
            granted += amount if was_granted else 0
        else:
            sign = 1 if kind == "charge" else -1
            bucket.charge(sign * amount)
            level = min(Fraction(burst), level - sign * amount)
            charged += amount if sign > 0 else 0
            refunded += amount if sign < 0 else 0
        assert bucket.remaining == max(0, math.floor(level)) <= burst
        assert granted + charged <= burst + rate * elapsed + refunded + max(0, -level)
