"""Settings that every suite needs before anything is imported, and which tests may run beside others."""

import os

import pytest

from work_unit import by_length, number_doubles, runs_alone, unit_scheduler

# Tests talk to nobody: weights and tokenizers are on disk, and the engine must not report usage.
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"):
    os.environ.setdefault(name, "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that need the machine for themselves; on a worker, put the long ones first."""
    number_doubles(items)
    for item in items:
        if runs_alone(item.nodeid):
            item.add_marker(pytest.mark.alone)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: by_length(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Keep a file's tests on one worker: servers and engines are started once for all of them."""
    return unit_scheduler(config, log) if config.getoption("dist") == "loadscope" else None
