"""Places for labels: who has one, that rows only grow, and that rates over all rows are exact whoever moves."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from shadow_server.observability.label import BusiestRows


class Cell:
    def __init__(self):
        self.value = 0


class World:
    """A table, the row for all that have none, and a Prometheus that scrapes and adds up increases."""

    def __init__(self, max_rows):
        self.now = 0.0
        self.rows = BusiestRows(max_rows, Cell, lambda: self.now)
        self.rest = Cell()
        self.increase = 0
        self.most_shown = 0
        self._last: dict[str, int] | None = None
        self.first_values = 0

    def request(self, key, times=1):
        for _ in range(times):
            self.rows.count(key)
            row = self.rows.find(key)
            (row or self.rest).value += 1

    def scrape(self, after_seconds=15.0):
        self.now += after_seconds
        self.rows.rebalance()
        shown = {key: row.value for key, row in self.rows.shown()}
        self.rows.settle()
        self.most_shown = max(self.most_shown, len(shown))
        shown["rest"] = self.rest.value
        if self._last is not None:
            for key, value in shown.items():
                # As Prometheus has it: the first sample of a series is no increase.
                before = self._last.get(key, value)
                assert value >= before, key
                self.increase += value - before
                self.first_values += value if key not in self._last else 0
        self._last = shown
        return shown


def test_keys_have_free_places_at_once():
    world = World(2)
    for key in "abc":
        world.request(key)
    assert world.scrape() == {"a": 1, "b": 1, "rest": 1}


def test_without_places_all_share_the_rest():
    world = World(0)
    world.request("a", 3)
    assert world.scrape() == {"rest": 3}


def test_a_place_changes_hands_at_scrapes_in_three_steps():
    world = World(2)
    world.request("a", 10)
    world.request("b", 2)
    world.request("c", 4)
    assert world.scrape() == {"a": 10, "b": 2, "rest": 4}  # not more than twice as busy
    world.request("c", 1)
    assert world.scrape() == {"a": 10, "b": 2, "rest": 5}  # b is asked to leave
    world.request("b", 3)
    world.request("c", 3)
    assert world.scrape(59) == {"a": 10, "b": 2, "rest": 11}
    assert world.scrape(1) == {"a": 10, "c": 0, "rest": 11}  # a minute later
    world.request("c", 2)
    assert world.scrape() == {"a": 10, "c": 2, "rest": 11}


def test_equally_busy_keys_do_not_take_turns():
    world = World(1)
    for _ in range(300):
        world.request("a")
        world.request("b")
    for _ in range(8):
        assert "b" not in world.scrape(30)


def test_a_challenger_counts_only_after_its_row_was_shown_at_zero():
    world = World(1)
    world.request("a", 1)
    world.request("b", 9)
    world.scrape()
    world.now += 60
    world.rows.rebalance()
    world.request("b", 3)  # while the scrape is being written
    assert [(key, row.value) for key, row in world.rows.shown()] == [("b", 0)]
    world.rows.settle()
    assert world.rest.value == 12
    world.request("b", 2)
    assert world.scrape() == {"b": 2, "rest": 12}


def test_old_traffic_is_forgotten():
    world = World(1)
    world.request("old", 5000)
    world.request("new", 6000)  # not twice as many, but the others are long ago
    for _ in range(4):
        shown = world.scrape(60)
    assert set(shown) == {"new", "rest"}


def test_one_place_that_is_given_up_is_one_challengers():
    world = World(3)
    world.request("quiet", 1)
    world.request("a", 50)
    world.request("b", 50)
    for key in ("x", "y", "z"):
        world.request(key, 20)
    world.scrape()
    world.scrape(60)
    shown = world.scrape()
    assert {"a", "b"} < set(shown)
    assert len(shown.keys() & {"x", "y", "z"}) == 1


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), max_rows=st.integers(1, 5))
def test_increases_over_all_rows_equal_the_requests_whoever_moves(seed, max_rows):
    rng = random.Random(seed)
    world = World(max_rows)
    for key in range(
        max_rows
    ):  # with free places the first scrape would not tell how many came before it
        world.request(f"first-{key}")
    world.scrape()
    for total in range(40):
        favourite = f"k{total // 8}"
        for _ in range(rng.randrange(30)):
            world.request(rng.choice([favourite, favourite, f"k{rng.randrange(20)}"]))
        world.scrape(rng.choice([5.0, 15.0, 40.0]))
    world.scrape()
    assert world.most_shown <= max_rows
    assert world.first_values == 0
    assert world.increase == world.rows._num_requests - max_rows
