"""Whether generation works: proof of life where there is work, a probe where there is none, an answer at once."""

import asyncio
import time

import pytest

from fake_server import until
from shadow_server.generation_watch import ANSWER_SECONDS, GenerationWatch


class Engine:
    """Gives output when the test says so, by a clock that stands still unless the test moves it."""

    def __init__(self):
        self.now = 100.0
        self.last_output_at = None
        self.num_probes = 0
        self.hangs = False
        self.is_silent = False
        self.error = None
        self.release = asyncio.Event()

    async def generate_probe(self):
        self.num_probes += 1
        if self.error is not None:
            raise self.error
        if self.hangs:
            await self.release.wait()
        if not self.is_silent:
            self.last_output_at = self.now

    def watch(self, answer_seconds=0.3):
        """Return a watch of 3 and 5 seconds."""
        return GenerationWatch(self, answer_seconds=answer_seconds, clock=lambda: self.now)

    async def pass_seconds(self, seconds):
        """Move the clock, and give the watch time to see it."""
        self.now += seconds
        await asyncio.sleep(0.25)


@pytest.fixture
def engine():
    return Engine()


async def ask_at_once(watch):
    """Ask for an answer that must not take time."""
    started_at = time.monotonic()
    reason = await watch.find_reason()
    assert time.monotonic() - started_at < 0.2
    return reason


async def test_the_first_answer_waits_for_the_first_token(engine):
    assert await engine.watch().find_reason() is None
    assert engine.num_probes == 1


async def test_the_first_answer_does_not_wait_for_ever(engine):
    engine.hangs = True
    watch = engine.watch()
    async with asyncio.timeout(2):
        assert "not generated a token yet" in await watch.find_reason()
    engine.release.set()
    await asyncio.sleep(0.25)
    assert await ask_at_once(watch) is None


async def test_an_answer_takes_less_than_an_orchestrator_waits():
    assert ANSWER_SECONDS <= 1


async def test_outputs_are_proof_enough(engine):
    watch = engine.watch()
    engine.last_output_at = 98.0
    assert await watch.find_reason() is None
    await engine.pass_seconds(0.5)
    assert engine.num_probes == 0
    await engine.pass_seconds(1)
    assert engine.num_probes == 1
    assert await ask_at_once(watch) is None


async def test_an_engine_that_hangs_is_found_out_without_a_question_and_believed_again(engine):
    watch = engine.watch()
    assert await watch.find_reason() is None
    engine.hangs = True
    await engine.pass_seconds(3.5)
    assert await ask_at_once(watch) is None  # a probe is under way: the last verdict holds
    await engine.pass_seconds(4)
    assert await ask_at_once(watch) is None
    await engine.pass_seconds(1.5)
    assert "does not generate" in await ask_at_once(watch)
    assert "does not generate" in await ask_at_once(watch)
    assert engine.num_probes == 2
    engine.release.set()
    await asyncio.sleep(0.25)
    assert await ask_at_once(watch) is None
    assert engine.num_probes == 2


async def test_an_engine_that_stops_is_found_out_in_the_sum_of_both_times(engine):
    watch = engine.watch()
    assert await watch.find_reason() is None
    engine.hangs, stopped_at = True, engine.now
    while await ask_at_once(watch) is None:
        await engine.pass_seconds(0.5)
    assert 8 <= engine.now - stopped_at <= 9
    engine.release.set()


async def test_a_probe_that_waits_behind_others_alarms_nobody(engine):
    watch = engine.watch()
    engine.hangs = True
    await watch.find_reason()  # the probe is under way before anybody has output
    assert engine.num_probes == 1
    for _ in range(8):  # much longer than the probe's own time
        engine.last_output_at = engine.now  # of somebody else's
        await engine.pass_seconds(2)
        assert await ask_at_once(watch) is None
    await engine.pass_seconds(4)  # one long step
    assert await ask_at_once(watch) is None
    assert engine.num_probes == 1
    engine.release.set()


async def test_an_engine_that_refuses_says_why_and_is_asked_again(engine):
    watch = engine.watch()
    engine.error = ValueError("secret")
    assert await watch.find_reason() == "The engine cannot generate: ValueError"
    engine.error = None
    await engine.pass_seconds(0.5)
    assert await ask_at_once(watch) == "The engine cannot generate: ValueError"
    assert engine.num_probes == 1
    await engine.pass_seconds(0.6)
    assert await ask_at_once(watch) is None
    assert engine.num_probes == 2


async def test_a_probe_that_ends_without_output_is_no_proof(engine):
    engine.is_silent = True
    assert "does not generate" in await engine.watch().find_reason()


async def test_who_asks_at_once_shares_one_probe(engine):
    watch = engine.watch()
    assert await asyncio.gather(*(watch.find_reason() for _ in range(5))) == [None] * 5
    assert engine.num_probes == 1


async def test_a_server_that_nobody_asks_generates_nothing(engine):
    watch = engine.watch()
    assert await watch.find_reason() is None
    await engine.pass_seconds(29)
    num_probes = engine.num_probes
    assert num_probes > 1
    await engine.pass_seconds(2)
    for _ in range(3):
        await engine.pass_seconds(4)
    assert engine.num_probes == num_probes
    assert await watch.find_reason() is None
    assert engine.num_probes == num_probes + 1


async def test_an_old_verdict_is_not_the_answer_to_a_new_question(engine):
    engine.error = RuntimeError()
    watch = engine.watch(answer_seconds=2)
    assert await watch.find_reason() is not None
    await engine.pass_seconds(31)
    await until(lambda: watch._task.done())
    engine.error = None
    assert await watch.find_reason() is None
