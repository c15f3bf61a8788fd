"""Every test is in one stage of `make test`, and what needs the machine for itself is in a stage without neighbours."""

import itertools
import re

import pytest
from _pytest.mark.expression import Expression

from source_tree import ROOT
from work_unit import ALONE, LONGEST, WHOLE_FOLDERS, by_length, number_doubles, runs_alone, unit_of

SCRIPT = (ROOT / ".ci/test.sh").read_text()
STAGES = re.findall(r'^stage ".*" (shared|suite) \d+ "([^"]*)"(?: --\S+)*$', SCRIPT, re.MULTILINE)
(HERE,) = re.findall(r'^readonly HERE="(.*)"$', SCRIPT, re.MULTILINE)
ELSEWHERE = {"gpu", "network", "timing"}
MARKERS = ("alone", "engine", "slow", *sorted(ELSEWHERE))
SUBSETS = [set(s) for n in range(len(MARKERS) + 1) for s in itertools.combinations(MARKERS, n)]


def kinds_of_stages(markers: set[str]) -> list[str]:
    """Return how each stage runs that takes a test with these markers."""

    def selects(expression: str) -> bool:
        return Expression.compile(expression).evaluate(lambda name, **_: name in markers)

    return [kind for kind, wanted in STAGES if selects(f"{HERE} and ({wanted})")]


@pytest.mark.parametrize(
    "markers", SUBSETS, ids=lambda markers: "-".join(sorted(markers)) or "none"
)
def test_a_test_is_in_one_stage_unless_it_runs_elsewhere(markers):
    expected = [] if markers & ELSEWHERE else ["suite" if "alone" in markers else "shared"]
    assert kinds_of_stages(markers) == expected


@pytest.mark.parametrize("name", [*ALONE, *LONGEST, *WHOLE_FOLDERS])
def test_what_is_named_is_there(name):
    path, _, test = name.partition("::")
    assert (ROOT / path).exists()
    assert not test or re.search(rf"def {test}\w*\(", (ROOT / path).read_text())


def test_a_folder_is_not_another_one_that_begins_like_it():
    assert runs_alone("tests/e2e/test_overload.py::test_the_rest_is_refused")
    assert runs_alone("tests/server/command/test_root.py::test_help_is_there_at_once")
    assert not runs_alone("tests/server/command/test_root.py::test_shell_completion[bash]")
    assert not runs_alone("tests/e2e_other/test_a.py::test_b")


def test_one_worker_gets_a_file_and_where_files_share_a_server_a_folder():
    assert unit_of("tests/a/test_b.py::TestC::test_d[e::f]") == "tests/a/test_b.py"
    assert unit_of("tests/compat/test_readme.py::test_a") == "tests/compat"


def test_the_long_ones_come_first_and_nothing_else_changes_its_place():
    last, first = LONGEST[-1], LONGEST[0]
    ids = ["tests/b.py::x", f"{last}/test_z.py::x", "tests/a.py::x", f"{first}::x"]
    assert sorted(ids, key=by_length) == [ids[3], ids[1], ids[0], ids[2]]


def test_tests_of_one_id_are_told_apart(request):
    class Item:
        def __init__(self, nodeid):
            self.nodeid = self._nodeid = nodeid

    items = [Item("a::x"), Item("a::y"), Item("a::x"), Item("a::x")]
    number_doubles(items)
    assert [item._nodeid for item in items] == ["a::x", "a::y", "a::x[2]", "a::x[3]"]
    ids = [item.nodeid for item in request.session.items]
    assert len(set(ids)) == len(ids)
