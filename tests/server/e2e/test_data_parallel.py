"""Two replicas of the engine behind one server: whichever takes a request has its adapter, and its current version."""

import asyncio
import shutil

import pytest

from fake_server import error_of
from running_server import (
    ADAPTERS,
    BASE,
    GREEDY,
    PROMPTS,
    START_SECONDS,
    UNLOADED,
    RunningServer,
    text_of,
)

pytestmark = [pytest.mark.engine, pytest.mark.slow]

PROMPT = PROMPTS[0]
NUM_REPLICAS = 2
NUM_EACH = 6


@pytest.fixture(scope="module")
def replicas(start_server):
    process, root = start_server("--data-parallel-size", str(NUM_REPLICAS))
    with process:
        process.wait_until_ready(START_SECONDS)
        running = RunningServer(process, root)
        yield running
        running.client.close()


def answers(server, *names):
    """Return each name's texts when all are asked several times at once."""
    asked = [name for name in names for _ in range(NUM_EACH)]
    bodies = [{"prompt": PROMPT.prompt, **GREEDY, "model": name} for name in asked]
    found = [text_of(answer) for answer in asyncio.run(server.burst(bodies))]
    return {name: {t for n, t in zip(asked, found, strict=True) if n == name} for name in names}


def num_answered(server):
    """Return how many sequences each replica has finished."""
    samples = server.samples().items()
    counts = dict.fromkeys(map(str, range(NUM_REPLICAS)), 0.0)
    for name, value in samples:
        if name.startswith("vllm:request_success_total"):
            counts[name.partition('engine="')[2].partition('"')[0]] += value
    return counts


def test_every_replica_answers_with_every_adapter(replicas):
    names = [name for name in ADAPTERS if name != UNLOADED]
    before = num_answered(replicas)
    found = answers(replicas, BASE, *names)
    after = num_answered(replicas)
    of_base = found.pop(BASE)
    assert found == {name: {PROMPT.expected[name]} for name in names}
    assert len(of_base) == 1
    assert of_base.isdisjoint(PROMPT.expected.values())
    assert all(after[replica] - before[replica] >= len(names) for replica in before), after


def test_a_new_version_answers_from_every_replica(replicas):
    for source in ("shout", "french"):
        shutil.copytree(ADAPTERS[source], replicas.root / "changing", dirs_exist_ok=True)
        assert replicas.load("changing", "changing").status_code == 201
        # From the acknowledgement on no replica has the old one, nor anybody else's.
        expected = {name: {PROMPT.expected[name]} for name in ("json", "shout", "french")}
        assert answers(replicas, "changing", *expected) == {
            "changing": {PROMPT.expected[source]},
            **expected,
        }
    assert replicas.unload("changing").status_code == 200
    assert error_of(replicas.complete(adapter="changing"))["code"] == "adapter_not_found"
