"""Who has unfinished requests, and the two-level weights: tenants, then their adapters."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow_runtime.admission import AdapterCensus


def make_census(*requests: tuple[int, str, float]) -> AdapterCensus:
    census = AdapterCensus()
    for number, (adapter, tenant, weight) in enumerate(requests):
        census.add(str(number), adapter, tenant, weight)
    return census


def test_one_tenants_adapters_weigh_the_same_whatever_its_weight_and_their_requests():
    census = make_census((1, "t", 7.0), (1, "t", 7.0), (2, "t", 7.0), (3, "t", 7.0))
    assert census.weights() == pytest.approx({1: 1.0, 2: 1.0, 3: 1.0})


def test_a_tenant_gains_nothing_by_spreading_over_many_adapters():
    noisy = [(adapter, "noisy", 1.0) for adapter in range(1, 11)]
    weights = make_census(*noisy, (11, "quiet", 1.0)).weights()
    assert sum(weights[a] for a in range(1, 11)) == pytest.approx(weights[11])
    assert sum(weights.values()) / 11 == pytest.approx(1.0)


def test_weights_follow_the_tenants():
    weights = make_census((1, "a", 3.0), (2, "b", 1.0)).weights()
    assert weights == pytest.approx({1: 1.5, 2: 0.5})


def test_a_shared_adapter_serves_the_shares_of_all_its_tenants():
    # Tenant a has 1/2 for each of two adapters, tenant b all of its 1 for the one that they share.
    weights = make_census((1, "a", 1.0), (2, "a", 1.0), (2, "b", 1.0)).weights()
    assert weights[2] / weights[1] == pytest.approx(3.0)


def test_the_latest_weight_of_a_tenant_counts():
    census = make_census((1, "a", 1.0), (2, "b", 1.0))
    assert census.weights()[1] == pytest.approx(1.0)
    census.add("later", 1, "a", 3.0)
    assert census.weights() == pytest.approx({1: 1.5, 2: 0.5})


def test_weights_change_when_an_adapter_goes():
    census = make_census((1, "a", 1.0), (2, "a", 1.0), (3, "b", 1.0))
    census.remove("1")
    assert census.weights() == pytest.approx({1: 1.0, 3: 1.0})


def test_knowing_a_request_twice_or_not_at_all_changes_nothing():
    census = make_census((1, "a", 1.0))
    census.add("0", 2, "b", 1.0)
    census.remove("unknown")
    assert (census.num_adapters, census.find_adapter("0"), census.find_adapter("unknown")) == (
        1,
        1,
        None,
    )


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(1, 4), st.sampled_from("ab")))
)
def test_the_census_holds_exactly_the_unfinished_requests(events):
    census, model = AdapterCensus(), {}
    for is_arrival, number, adapter, tenant in events:
        if is_arrival:
            census.add(str(number), adapter, tenant, 1.0)
            model.setdefault(str(number), (adapter, tenant))
        else:
            census.remove(str(number))
            model.pop(str(number), None)
        assert set(census.weights()) == {a for a, _ in model.values()}
        assert census.num_adapters == len({a for a, _ in model.values()})
        pairs = set(model.values())
        spread = Counter(t for _, t in pairs)
        shares = {a: sum(1 / spread[t] for b, t in pairs if b == a) for a, _ in pairs}
        mean = sum(shares.values()) / max(1, len(shares))
        assert dict(census.weights()) == pytest.approx({a: s / mean for a, s in shares.items()})
