"""Who leaves host memory first."""

from shadow_runtime.registry.eviction import WeightedRecency


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_the_least_recently_used_leaves_first():
    clock = Clock()
    order = WeightedRecency(clock)
    for digest in "abc":
        order.touch(digest, 0.05)
        clock.now += 1
    order.touch("a", 0.05)
    assert order.choose("abc") == "b"
    assert order.choose("ac") == "c"
    assert order.choose("") is None


def test_a_slow_load_may_be_idle_for_longer():
    clock = Clock()
    order = WeightedRecency(clock)
    order.touch("slow", 1.0)
    clock.now = 5
    order.touch("fast", 0.1)
    clock.now = 5.4
    assert order.choose(["slow", "fast"]) == "slow"
    clock.now = 6
    assert order.choose(["slow", "fast"]) == "fast"


def test_noise_in_fast_loads_does_not_decide():
    clock = Clock()
    order = WeightedRecency(clock)
    order.touch("a", 1e-4)
    clock.now = 0.1
    order.touch("b", 1e-7)
    clock.now = 1
    assert order.choose("ab") == "a"


def test_what_no_name_answers_with_leaves_before_all_others():
    clock = Clock()
    order = WeightedRecency(clock)
    order.touch("old", 0.1)
    clock.now = 100
    order.touch("superseded", 10.0)
    order.demote("superseded")
    clock.now = 101
    assert order.choose(["old", "superseded"]) == "superseded"
    order.touch("superseded", 10.0)
    assert order.choose(["old", "superseded"]) == "old"


def test_what_has_left_is_forgotten():
    order = WeightedRecency()
    order.touch("a", 1.0)
    order.forget("a")
    order.forget("a")
    order.touch("a", 1.0)
    assert order.choose("a") == "a"
