"""Which cases are compared."""

from shadow_server.bench.case import SHAPES, plan

MIXED, DECODE = SHAPES["mixed"], SHAPES["decode"]
NAMES = [f"a{i}" for i in range(12)]


def names_of(cases):
    return [case.name for case in cases]


def test_the_base_comes_first_for_every_shape():
    cases = plan(NAMES, [MIXED, DECODE], counts=[1, 4])
    assert names_of(cases) == [
        *("mixed/base", "mixed/distinct-1", "mixed/distinct-4"),
        *("decode/base", "decode/distinct-1", "decode/distinct-4"),
    ]
    assert cases[2].adapters == ("a0", "a1", "a2", "a3")


def test_more_adapters_than_there_are_is_left_out():
    assert names_of(plan(NAMES[:3], [MIXED], counts=[2, 4])) == ["mixed/base", "mixed/distinct-2"]


def test_popularities_are_combined_with_every_count_but_one():
    cases = plan(NAMES, [MIXED], counts=[1, 2], popularities=["uniform", "zipf"])
    assert names_of(cases)[1:] == ["mixed/uniform-1", "mixed/uniform-2", "mixed/zipf-2"]


def test_overflow_is_twice_the_slots_where_there_are_so_many():
    assert names_of(plan(NAMES, [MIXED], counts=[1], num_slots=4))[-1] == "mixed/distinct-8"
    assert len(plan(NAMES, [MIXED], counts=[1], num_slots=8)) == 2


def test_churn_repeats_the_largest_case():
    cases = plan(NAMES, [MIXED], counts=[1, 4], has_churn=True)
    assert names_of(cases)[-2:] == ["mixed/distinct-4", "mixed/distinct-4+churn"]
    assert names_of(plan([], [MIXED], has_churn=True)) == ["mixed/base"]
