"""A thousand loads and unloads leave memory, descriptors and slots as they were."""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path

import pytest

from engine_cast import Cast, build_cast
from engine_session import Row, answer_rows, random_prompt, shadow_engine
from reference_adapters import AdapterKind, build_adapter

KIND: AdapterKind = "paper_implicit"
NUM_CYCLES = 1000
NUM_WARM_UP = 100
NUM_ADAPTERS = 8
MAX_GROWTH_BYTES = 8 << 20

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    return build_cast("qwen3", tmp_path_factory.mktemp("cycles"))


def resident_bytes() -> int:
    """Return this process's memory, after what is free has gone back to the system.

    The engine and its worker run in this process. The allocator keeps what was freed until it is asked to give it back,
    so without that the figure tells its history, not what is held.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_thousand_cycles_leave_nothing_behind(cast: Cast, tmp_path: Path) -> None:
    paths = [
        build_adapter(KIND, cast.base, tmp_path / str(seed), seed=seed)
        for seed in range(NUM_ADAPTERS)
    ]
    with shadow_engine(cast.base, {"kept": cast.adapters[KIND]}, max_resident_adapters=2) as llm:

        def cycle(number: int) -> None:
            llm.load_adapter("passing", paths[number % NUM_ADAPTERS])
            if number % 3 == 0:
                assert llm.prefetch("passing")
            if number % 10 == 0:
                rows = [Row("passing", random_prompt(9, seed=number)), Row("kept", (1, 2, 3))]
                answer_rows(llm, rows, 2)
            llm.unload_adapter("passing")

        # Threads, arenas and caches of first use.
        for number in range(NUM_WARM_UP):
            cycle(number)
        (before,) = llm.worker_status()
        memory, descriptors = resident_bytes(), num_descriptors()
        for number in range(NUM_WARM_UP, NUM_WARM_UP + NUM_CYCLES):
            cycle(number)
        (after,) = llm.worker_status()
        growth = resident_bytes() - memory
        assert num_descriptors() == descriptors
        assert after == before
        assert after["held"] == [llm.adapters["kept"].manifest.digest]
        llm.unload_adapter("kept")
        (empty,) = llm.worker_status()
        assert empty["num_free_slots"] == empty["num_slots"]
        assert (empty["held"], empty["host_bytes"]) == ([], 0)
    assert growth <= MAX_GROWTH_BYTES, f"{growth / 2**20:.1f} MiB more"
