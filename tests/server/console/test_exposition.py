"""The console's reading of /metrics against the command line's, in a real browser."""

import random

import pytest

from shadow_server.command.scrape import quantile, read_samples

pytestmark = pytest.mark.slow


def test_quantiles_are_those_of_the_command_line(browser, server):
    rng = random.Random(5)
    bounds = [0.001, 0.01, 0.1, 1.0, 10.0]
    for _ in range(20):
        counts = sorted(float(rng.randrange(0, 50)) for _ in range(len(bounds) + 1))
        ratio = rng.choice([0.5, 0.9, 0.99])
        script = """
            const { quantile } = await import("/console/exposition.js");
            const [bounds, counts, ratio] = arguments;
            return quantile(new Map([...bounds, Infinity].map((b, i) => [b, counts[i]])), ratio);
        """
        expected = quantile(dict(zip([*bounds, float("inf")], counts, strict=True)), ratio)
        assert browser.run(script, bounds, counts, ratio) == pytest.approx(expected)


def test_samples_are_read_as_the_command_line_reads_them(browser, server):
    text = "\n".join(
        (
            "# HELP a nothing",
            'a{adapter="x\\"y\\\\z\\nw",le="0.5"} 3',
            'a_bucket{adapter="}, b=\\"",le="+Inf"} 4.5e3',
            "b 1",
            "nonsense",
        )
    )
    script = """
        const { readSamples } = await import("/console/exposition.js");
        return readSamples(arguments[0]);
    """
    expected = [
        {"name": s.name, "labels": dict(s.labels), "value": s.value} for s in read_samples(text)
    ]
    assert len(expected) == 3
    assert browser.run(script, text) == expected
