"""Levels in answers follow the engine, and a slow engine holds nobody up."""

import asyncio

from shadow_server.admin import level
from shadow_server.admin.level import LevelRefresh


class Adapters:
    def __init__(self):
        self.num_calls = 0
        self.gate = asyncio.Event()
        self.failure = None

    async def refresh_levels(self):
        self.num_calls += 1
        await self.gate.wait()
        if self.failure:
            raise self.failure


async def test_the_level_that_is_shown_is_the_engines(server, monkeypatch):
    monkeypatch.setattr(level, "_FRESH_SECONDS", 0.0)
    digest = await server.load("math")
    assert (await server.client.get("/v1/adapters/math")).json()["level"] == "gpu"
    await server.engine.loader.release_slot(digest)
    assert (await server.client.get("/v1/adapters/math")).json()["level"] == "host"
    assert (await server.client.get("/v1/adapters")).json()["data"][0]["level"] == "host"


async def test_many_callers_are_one_question_and_a_second_later_another(monkeypatch):
    adapters = Adapters()
    adapters.gate.set()
    refresh = LevelRefresh(adapters)
    await asyncio.gather(*(refresh.refresh() for _ in range(20)))
    await refresh.refresh()
    assert adapters.num_calls == 1
    monkeypatch.setattr(level, "_FRESH_SECONDS", 0.0)
    await refresh.refresh()
    assert adapters.num_calls == 2


async def test_an_engine_that_is_slow_or_fails_holds_nobody_up(monkeypatch, caplog):
    monkeypatch.setattr(level, "_WAIT_SECONDS", 0.01)
    adapters = Adapters()
    refresh = LevelRefresh(adapters)
    async with asyncio.timeout(5):
        await refresh.refresh()
        await refresh.refresh()
    assert adapters.num_calls == 1
    adapters.failure = RuntimeError("gone")
    adapters.gate.set()
    monkeypatch.setattr(level, "_FRESH_SECONDS", 0.0)
    await refresh.refresh()
    assert "did not tell" in caplog.text
