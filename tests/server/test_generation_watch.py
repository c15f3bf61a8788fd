"""Whether generation works: proof of life where there is work, a probe where there is none."""

import asyncio

from fake_server import settle
from shadow_server.generation_watch import GenerationWatch


class Engine:
    """Gives output when the test says so."""

    def __init__(self):
        self.now = 100.0
        self.last_output_at = None
        self.num_probes = 0
        self.hangs = False
        self.error = None
        self.release = asyncio.Event()

    async def generate_probe(self):
        self.num_probes += 1
        if self.error is not None:
            raise self.error
        if self.hangs:
            await self.release.wait()
        self.last_output_at = self.now

    def watch(self, patience_seconds=0.05):
        """Return a watch whose clock goes a little further whenever it is looked at."""

        def clock():
            self.now += 0.01
            return self.now

        return GenerationWatch(
            self, quiet_seconds=3, patience_seconds=patience_seconds, clock=clock
        )


async def test_the_first_answer_waits_for_the_first_token():
    engine = Engine()
    assert await engine.watch().find_reason() is None
    assert engine.num_probes == 1


async def test_outputs_are_proof_enough():
    engine = Engine()
    watch = engine.watch()
    engine.last_output_at = 98.0
    assert await watch.find_reason() is None
    assert engine.num_probes == 0
    engine.now = 101.5
    assert await watch.find_reason() is None
    assert engine.num_probes == 1


async def test_an_engine_that_hangs_is_found_out_and_believed_again():
    engine = Engine()
    watch = engine.watch()
    assert await watch.find_reason() is None
    engine.hangs, engine.now = True, 104.0
    assert "does not generate" in await watch.find_reason()
    engine.now = 200.0
    async with asyncio.timeout(1):  # the time of the probe that is under way is over
        assert "does not generate" in await watch.find_reason()
    assert engine.num_probes == 2
    engine.release.set()
    await settle()
    assert await watch.find_reason() is None
    assert engine.num_probes == 2


async def test_a_probe_that_waits_behind_others_alarms_nobody():
    engine = Engine()
    watch = engine.watch(patience_seconds=5)
    engine.hangs = True
    asked = asyncio.create_task(watch.find_reason())
    await settle()
    engine.last_output_at = engine.now  # of somebody else's
    async with asyncio.timeout(2):  # long before its patience is over
        assert await asked is None
        assert await watch.find_reason() is None
    assert engine.num_probes == 1
    engine.release.set()
    await settle()


async def test_an_engine_that_refuses_says_why_and_is_asked_again():
    engine = Engine()
    watch = engine.watch()
    engine.error = ValueError("secret")
    assert await watch.find_reason() == "The engine cannot generate: ValueError"
    engine.error = None
    assert await watch.find_reason() is None
    assert engine.num_probes == 2


async def test_who_asks_at_once_shares_one_probe():
    engine = Engine()
    watch = engine.watch(patience_seconds=5)
    assert await asyncio.gather(*(watch.find_reason() for _ in range(5))) == [None] * 5
    assert engine.num_probes == 1
