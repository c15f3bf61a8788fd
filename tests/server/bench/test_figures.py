"""Figures by hand from a few timings."""

import pytest

from shadow_server.bench.figures import figures_of, ratios
from shadow_server.bench.load import Round, Timing

TIMINGS = [
    Timing(0.0, [0.1, 0.2, 0.4], prompt_tokens=10, output_tokens=3),
    Timing(1.0, [1.3, 1.4], prompt_tokens=10, output_tokens=2),
    Timing(2.0, error="ServerError: full"),
    Timing(3.0, []),
]


@pytest.fixture
def figures():
    return figures_of([Round(2.0, 0.5, TIMINGS[:2]), Round(2.0, 1.5, TIMINGS[2:])], 4)


def test_what_failed_counts_as_failed_only(figures):
    assert (figures["num_prompts"], figures["completed"], figures["failed"]) == (4, 2, 2)
    assert figures["errors"] == ["ServerError: full"]


def test_throughput_is_over_all_rounds(figures):
    assert figures["duration"] == 4.0
    assert figures["request_throughput"] == 0.5
    assert figures["output_throughput"] == 5 / 4
    assert figures["total_token_throughput"] == 25 / 4
    assert figures["client_cpu_cores"] == 0.5


def test_latencies_are_milliseconds(figures):
    assert figures["median_ttft_ms"] == pytest.approx(200)
    assert figures["p99_ttft_ms"] == pytest.approx(300)
    assert figures["mean_itl_ms"] == pytest.approx((100 + 200 + 100) / 3)
    assert figures["mean_tpot_ms"] == pytest.approx((150 + 100) / 2)
    assert figures["mean_e2el_ms"] == pytest.approx(400)


def test_ratios_are_over_the_base(figures):
    slower = figures | {"median_ttft_ms": 300.0, "output_throughput": 1.0}
    found = ratios(slower, figures)
    assert found["median_ttft_ms"] == pytest.approx(1.5)
    assert found["output_throughput"] == pytest.approx(0.8)
    assert found["median_itl_ms"] == 1.0


def test_without_answers_there_are_no_ratios():
    nothing = figures_of([Round(1.0, 0.0, [Timing(0.0, error="x")])], 1)
    assert nothing["completed"] == 0
    assert set(ratios(nothing, nothing).values()) == {None}


def test_nothing_is_not_the_fastest(figures):
    nothing = figures_of([Round(1.0, 0.0, [Timing(0.0, error="x")])], 1)
    assert set(ratios(nothing, figures).values()) == {None}
