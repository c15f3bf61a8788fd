"""Which tests may share the machine with others, and what of them one worker of pytest-xdist gets at a time.

`make test` runs most tests on two workers. What bounds or counts seconds of real time runs after them, with nothing
beside it: a bound that holds on an idle machine need not hold on half of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

ALONE: dict[str, str] = {
    "tests/architecture/test_import_cost.py": "budgets of processor time, which a neighbour's caches raise",
    "tests/e2e": "loads of so many clients a second; kills, drains and swaps at their instants",
    "tests/engine/test_fairness.py": "waits below two seconds",
    "tests/kernels/test_segments.py::test_a_long_prefill": "a fraction of a millisecond",
    "tests/runtime/registry/test_change.py": "waits of hundredths of a second",
    "tests/runtime/registry/test_gate.py": "waits of hundredths of a second",
    "tests/runtime/registry/test_registry.py": "waits of tenths of a second",
    "tests/runtime/registry/test_replica.py": "changes that are seen within two seconds",
    "tests/server/command/test_root.py::test_help_is_there": "a start within two seconds",
    "tests/server/e2e": "readiness, drains, queues and rates of a real server",
    "tests/server/observability/test_request.py::test_a_token_costs": "microseconds",
    "tests/server/openai/test_openai_client.py": "answers within half a second",
    "tests/server/test_generation_watch.py": "answers within a fifth of a second",
    "tests/server/test_health.py": "readiness within seconds",
}
"""Folders, files or beginnings of tests' ids that must not share the machine, and why."""

LONGEST = (
    "tests/fidelity/test_families.py",
    "tests/server/test_schema_fuzz.py",
    "tests/kernels/test_interpreter.py",
    "tests/runtime/registry/test_state_machine.py",
    "tests/runtime/artifact/test_optimized.py",
    "tests/engine/test_load_cycles.py",
    "tests/engine/test_traps.py",
    "tests/engine/test_parallel.py",
    "tests/engine/test_canary.py",
    "tests/runtime/catalog/test_crash.py",
    "tests/kernels/test_build.py",
    "tests/compat",
)
"""What is handed out first, so that no worker is left with a long one at the end. Order only: nothing depends on it."""

WHOLE_FOLDERS = ("tests/compat",)
"""Folders whose files share a server that takes half a minute to start."""


def runs_alone(nodeid: str) -> bool:
    """Say whether a test needs the machine for itself."""
    return _is_below(nodeid, ALONE)


def unit_of(nodeid: str) -> str:
    """Return the file or folder whose tests all run on one worker, so that its fixtures are made once."""
    file = nodeid.partition("::")[0]
    return next((folder for folder in WHOLE_FOLDERS if _is_below(file, [folder])), file)


def by_length(nodeid: str) -> int:
    """Sort key: what takes long comes first, the rest stays in its order."""
    places = (place for place, name in enumerate(LONGEST) if _is_below(nodeid, [name]))
    return next(places, len(LONGEST))


def number_doubles(items: Iterable[Any]) -> None:
    """Give tests of one id ids of their own: workers are told ids, so of two alike one would never run."""
    seen: Counter[str] = Counter()
    for item in items:
        seen[item.nodeid] += 1
        if (number := seen[item.nodeid]) > 1:
            item._nodeid = f"{item.nodeid}[{number}]"


def unit_scheduler(config: Any, log: Any) -> Any:
    """Return the scheduler of pytest-xdist that hands out `unit_of`."""
    from xdist.scheduler import LoadScopeScheduling

    class UnitScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    config.option.loadscopereorder = False
    return UnitScheduling(config, log)


def _is_below(nodeid: str, names: Iterable[str]) -> bool:
    return any(nodeid.startswith(name if "." in name else f"{name}/") for name in names)
