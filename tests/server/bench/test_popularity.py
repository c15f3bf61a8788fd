"""How often clients want which adapter."""

import itertools
import random
from collections import Counter

import pytest

from shadow_server.bench.popularity import POPULARITIES, draw

NAMES = ["a", "b", "c", "d"]


def drawn(popularity, count, names=NAMES):
    return list(itertools.islice(draw(popularity, names, random.Random(0)), count))


def test_distinct_takes_them_in_turn():
    assert drawn("distinct", 6) == ["a", "b", "c", "d", "a", "b"]


def test_identical_takes_one():
    assert drawn("identical", 3) == ["a", "a", "a"]


def test_uniform_draws_all_alike():
    counts = Counter(drawn("uniform", 4000))
    assert all(900 < counts[name] < 1100 for name in NAMES)


def test_zipf_draws_by_rank():
    counts = Counter(drawn("zipf", 8000))
    assert [name for name, _ in counts.most_common()] == NAMES
    assert counts["a"] / counts["b"] == pytest.approx(2**1.1, rel=0.15)


@pytest.mark.parametrize("popularity", POPULARITIES)
def test_without_adapters_the_base_is_asked(popularity):
    assert drawn(popularity, 2, []) == [None, None]
