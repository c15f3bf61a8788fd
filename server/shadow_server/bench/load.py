"""Clients in a closed loop: each sends, reads its stream to the end, and sends again.

Runs in: the command's own process.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from shadow_client import AsyncClient, ShadowClientError
from shadow_server.bench.case import Case
from shadow_server.bench.popularity import draw

# Any vocabulary has these ids; what they say does not matter, only that no two prompts begin alike.
_TOKENS = range(10, 250)

# A refusal takes a millisecond: clients that ask again at once would measure nothing but refusals.
_PAUSE_SECONDS = 0.1


@dataclass(slots=True)
class Timing:
    """One request; times in seconds of the monotonic clock.

    Attributes:
        sent_at: when it was sent.
        arrivals: of each piece of the answer.
        prompt_tokens, output_tokens: as the server counted them.
        error: why there is no whole answer; None when there is.
    """

    sent_at: float
    arrivals: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """What a case's clients saw in one stretch of time.

    Attributes:
        seconds: from the first request to the last answer.
        cpu_seconds: that the clients' process computed meanwhile.
        timings: of all requests.
    """

    seconds: float
    cpu_seconds: float
    timings: list[Timing]


async def run_round(
    client: AsyncClient, case: Case, *, concurrency: int, seconds: float, seed: str
) -> Round:
    """Keep `concurrency` requests under way for some seconds, then let them end.

    Args:
        client: of the server.
        case: whom to ask for what.
        concurrency: requests under way.
        seconds: until no more is sent.
        seed: of prompts and draws; no two rounds have the same, or the second one's prompts are cached.
    """
    rng = random.Random(seed)  # noqa: S311 - load, not secrets
    names = draw(case.popularity, case.adapters, rng)
    started, cpu_started = time.monotonic(), time.process_time()
    timings: list[Timing] = []
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(_ask_until(started + seconds, client, case, names, rng, timings))
    return Round(time.monotonic() - started, time.process_time() - cpu_started, timings)


async def _ask_until(
    end: float,
    client: AsyncClient,
    case: Case,
    names: Iterator[str | None],
    rng: random.Random,
    timings: list[Timing],
) -> None:
    # At least one each: a machine that stalls at the start leaves no round without figures.
    while True:
        prompt = rng.choices(_TOKENS, k=case.shape.prompt_tokens)
        timing = await ask(client, prompt, next(names), case.shape.output_tokens)
        timings.append(timing)
        if timing.error is not None:
            await asyncio.sleep(_PAUSE_SECONDS)
        if time.monotonic() >= end:
            return


async def ask(
    client: AsyncClient, prompt: list[int], adapter: str | None, num_tokens: int
) -> Timing:
    """Send one request and time its stream."""
    timing = Timing(time.monotonic())
    try:
        stream = await client.completions.stream(
            prompt, adapter=adapter, max_tokens=num_tokens, temperature=0, ignore_eos=True
        )
        async with stream:
            async for chunk in stream:
                if chunk.choices:
                    timing.arrivals.append(time.monotonic())
        if stream.usage is not None:
            timing.prompt_tokens = stream.usage.prompt_tokens
            timing.output_tokens = stream.usage.completion_tokens or 0
    except ShadowClientError as error:
        timing.error = f"{type(error).__name__}: {error}"
    return timing
