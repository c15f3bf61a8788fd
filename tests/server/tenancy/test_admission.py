"""The queue in front of the engine: its bound, its shares, and what is given back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow_server.tenancy.admission import Admission, default_max_queued
from shadow_server.tenancy.identity import ANONYMOUS, Identity
from shadow_server.tenancy.quota import TenantQuotas
from shadow_server.tenancy.refusal import RefusalError


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def tenant(name="acme", weight=1.0, **quotas):
    return Identity(name, "user", weight=weight, quotas=TenantQuotas(**quotas))


def admit_all(admission, identity, most=10_000):
    tickets = []
    try:
        while len(tickets) < most:
            tickets.append(admission.admit(identity))
    except RefusalError as refusal:
        return tickets, refusal
    return tickets, None


def test_the_queue_is_bounded_and_empties(clock):
    admission = Admission(4, 6, clock=clock)
    tickets, refusal = admit_all(admission, ANONYMOUS)
    assert len(tickets) == admission.num_requests == 10
    assert refusal.code == "server_overloaded"
    assert 1 <= refusal.retry_after_seconds <= 30
    tickets.pop().release()
    again, _ = admit_all(admission, ANONYMOUS)
    assert len(again) == 1
    for ticket in tickets + again:
        with ticket:
            pass
        ticket.release()
    assert admission.num_requests == 0
    admission.check_integrity()


def test_one_tenant_leaves_room_for_another(clock):
    admission = Admission(10, 90, newcomer_weight=1.0, clock=clock)
    noisy, _ = admit_all(admission, tenant("noisy"))
    assert len(noisy) == 50
    quiet, refusal = admit_all(admission, tenant("quiet"))
    assert len(quiet) == 33
    assert refusal.code == "server_overloaded"
    # The noisy one is over its new share: places that get free are the quiet one's.
    noisy.pop().release()
    assert admit_all(admission, tenant("noisy"))[0] == []
    for ticket in quiet:
        ticket.release()
    assert len(admit_all(admission, tenant("noisy"))[0]) == 1
    admission.check_integrity()


def test_shares_follow_the_weights(clock):
    admission = Admission(1, 99, newcomer_weight=1.0, clock=clock)
    light = [admission.admit(tenant("light"))]
    heavy, _ = admit_all(admission, tenant("heavy", weight=8.0))
    light += admit_all(admission, tenant("light"))[0]
    assert (len(heavy), len(light)) == (80, 10)


def test_everyone_gets_at_least_one_place(clock):
    admission = Admission(1, 3, newcomer_weight=1.0, clock=clock)
    admission.admit(tenant("heavy", weight=1000.0))
    tiny, _ = admit_all(admission, tenant("tiny", weight=0.001))
    assert len(tiny) == 1


def test_running_places_are_not_shared_out(clock):
    admission = Admission(50, 2, newcomer_weight=1.0, clock=clock)
    assert len(admit_all(admission, tenant("noisy"))[0]) == 50


def test_a_full_queue_takes_no_request_of_the_minute(clock):
    admission = Admission(1, 0, clock=clock)
    with admission.admit(ANONYMOUS):
        for _ in range(5):
            with pytest.raises(RefusalError):
                admission.admit(tenant(requests_per_minute=1))
    with admission.admit(tenant(requests_per_minute=1)):
        pass


def test_wait_follows_the_queue_and_the_time_that_requests_stay(clock):
    admission = Admission(10, 1000, clock=clock)
    assert admission.queue_wait_seconds() == 1.0
    # 20 at once that stay 40 s: one ends every 2 s, so 11 places take 22 s.
    for _ in range(200):
        ticket = admission.admit(ANONYMOUS)
        clock.now += 40
        ticket.release()
    admit_all(admission, ANONYMOUS, 20)
    assert admission.queue_wait_seconds() == pytest.approx(22.0, rel=0.01)
    admit_all(admission, ANONYMOUS, 200)
    assert admission.queue_wait_seconds() == 30.0


def test_concurrent_requests(clock):
    admission = Admission(100, 100, clock=clock)
    acme = tenant(max_concurrent_requests=2)
    tickets, refusal = admit_all(admission, acme)
    assert len(tickets) == 2
    assert (refusal.code, refusal.retry_after_seconds) == ("rate_limit_exceeded", 1)
    admission.admit(tenant("other"))
    tickets[0].release()
    admission.admit(acme)


def test_requests_a_minute_and_the_honest_wait(clock):
    admission = Admission(100, 100, clock=clock)
    acme = tenant(requests_per_minute=4)
    tickets, refusal = admit_all(admission, acme)
    assert len(tickets) == 4
    for ticket in tickets:
        ticket.release()
    assert refusal.retry_after_seconds == 15
    (rate,) = refusal.rates
    assert (rate.unit, rate.limit, rate.remaining) == ("requests", 4, 0)
    assert rate.reset_seconds == pytest.approx(60)
    clock.now += 14.9
    with pytest.raises(RefusalError):
        admission.admit(acme)
    clock.now += 0.2
    admission.admit(acme).release()
    # Two keys of one tenant share its limits.
    with pytest.raises(RefusalError):
        admission.admit(Identity("acme", "admin", "k2", quotas=acme.quotas))


def test_so_many_requests_of_a_minute_at_once(clock):
    admission = Admission(100, 100, clock=clock)
    acme = tenant(requests_per_minute=60, request_burst=3)
    tickets, refusal = admit_all(admission, acme)
    assert len(tickets) == 3
    assert refusal.message == "The limit of 60 requests a minute with a burst of 3 is reached"
    assert refusal.retry_after_seconds == 1
    (rate,) = refusal.rates
    assert (rate.limit, rate.remaining, rate.reset_seconds) == (60, 0, pytest.approx(3))
    clock.now += 60
    assert len(admit_all(admission, acme)[0]) == 3


def test_a_new_burst_applies_at_once(clock):
    admission = Admission(100, 100, clock=clock)
    admit_all(admission, tenant(requests_per_minute=60, request_burst=3))
    more, _ = admit_all(admission, tenant(requests_per_minute=60, request_burst=5))
    assert len(more) == 2
    assert admit_all(admission, tenant(requests_per_minute=60, request_burst=2))[0] == []


def test_tokens_are_taken_in_advance_and_settled(clock):
    admission = Admission(100, 100, clock=clock)
    acme = tenant(tokens_per_minute=100)
    with admission.admit(acme) as ticket:
        ticket.take_tokens("t1", 80)
        ticket.mark_run()
        with admission.admit(acme) as second:
            with pytest.raises(RefusalError) as caught:
                second.take_tokens("t2", 30)
            assert caught.value.retry_after_seconds == 6
            assert [r.unit for r in caught.value.rates] == ["tokens"]
        admission.ledger.observe_usage("t1", 5, 5)
    (rate,) = ticket.rates()
    assert rate.remaining == 90


def test_what_can_never_pass_is_told_so(clock):
    admission = Admission(100, 100, clock=clock)
    with admission.admit(tenant(tokens_per_minute=100)) as ticket:
        with pytest.raises(RefusalError) as caught:
            ticket.take_tokens("t", 101)
        assert caught.value.retry_after_seconds is None
        ticket.take_tokens("t", 100)


def test_used_up_tokens_refuse_before_a_body_is_needed(clock):
    admission = Admission(100, 100, clock=clock)
    acme = tenant(tokens_per_minute=60)
    with admission.admit(acme) as ticket:
        ticket.take_tokens("t", 60)
        ticket.mark_run()
        with pytest.raises(RefusalError) as caught:
            admission.admit(acme)
        assert caught.value.retry_after_seconds == 1


def test_new_quotas_apply_at_once(clock):
    admission = Admission(100, 100, clock=clock)
    tickets, _ = admit_all(admission, tenant(requests_per_minute=3))
    assert len(tickets) == 3
    more, _ = admit_all(admission, tenant(requests_per_minute=5))
    assert len(more) == 2
    assert len(admit_all(admission, tenant(), 50)[0]) == 50


@pytest.mark.parametrize(("max_running", "expected"), [(1, 1024), (256, 1024), (1024, 4096)])
def test_default_queue(max_running, expected):
    assert default_max_queued(max_running) == expected


@given(
    steps=st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=200),
    max_running=st.integers(1, 6),
    max_queued=st.integers(0, 12),
)
def test_any_order_keeps_the_counts(steps, max_running, max_queued):
    admission = Admission(max_running, max_queued, newcomer_weight=1.0, clock=lambda: 0.0)
    tenants = [tenant(f"t{i}", weight=1.0 + i) for i in range(5)]
    held = []
    for index, is_arrival in steps:
        if is_arrival:
            try:
                held.append(admission.admit(tenants[index]))
            except RefusalError as refusal:
                assert admission.num_requests >= max_running
                assert refusal.retry_after_seconds is not None  # noqa: PT017
        elif held:
            held.pop(index % len(held)).release()
        admission.check_integrity()
        assert admission.num_requests == len(held) <= max_running + max_queued
