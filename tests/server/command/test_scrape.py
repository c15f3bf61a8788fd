"""Quantiles and sums out of /metrics, against prometheus_client's own text and a hand-made distribution."""

import math

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from shadow_server.command.scrape import Series, by_adapter, quantile, read_samples


def scrape(*observations):
    registry = CollectorRegistry()
    for name in ("shadow_time_to_first_token_seconds", "shadow_inter_token_latency_seconds"):
        family = Histogram(
            name, "x", ["adapter", "tenant"], buckets=(0.1, 0.2, 0.4), registry=registry
        )
        for adapter, tenant, seconds in observations:
            family.labels(adapter, tenant).observe(seconds)
    Counter("other", "x", registry=registry).inc(3)
    return generate_latest(registry).decode()


def test_series_are_summed_over_other_labels():
    found = by_adapter(read_samples(scrape(("a", "t", 0.05), ("a", "u", 0.3), ('b"\\\n', "t", 9))))
    assert found.keys() == {"a", 'b"\\\n'}
    assert found["a"].num_requests == 2
    assert found["a"].first_token == {0.1: 1, 0.2: 1, 0.4: 2, math.inf: 2}
    assert found["a"].inter_token == found["a"].first_token


def test_only_what_is_new_counts():
    before = by_adapter(read_samples(scrape(("a", "t", 0.05))))["a"]
    after = by_adapter(read_samples(scrape(("a", "t", 0.05), ("a", "t", 0.3))))["a"]
    new = after.since(before)
    assert (new.num_requests, new.first_token[0.1], new.first_token[0.4]) == (1, 0, 1)
    assert after.since(None) is after
    assert before.since(after) is before  # the server began anew


@pytest.mark.parametrize(
    ("ratio", "seconds"), [(0.0, 0.0), (0.25, 0.05), (0.5, 0.1), (0.75, 0.3), (1.0, 0.4)]
)
def test_quantiles_interpolate(ratio, seconds):
    buckets = {0.1: 2.0, 0.2: 2.0, 0.4: 4.0, math.inf: 4.0}
    assert quantile(buckets, ratio) == pytest.approx(seconds)


def test_quantiles_without_a_bound_above_or_without_observations():
    assert quantile({0.1: 0.0, math.inf: 4.0}, 0.5) == 0.1
    assert quantile({0.1: 0.0, math.inf: 0.0}, 0.5) is None
    assert quantile({}, 0.5) is None
    assert Series().num_requests == 0


def test_lines_that_are_no_samples():
    assert read_samples("# HELP a b\n\nnonsense\na 1\n")[0].name == "a"
