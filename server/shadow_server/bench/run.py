"""All cases in turn, several times over, so that a change of the machine's other load falls on all of them alike.

Runs in: the command's own process.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from shadow_client import AsyncClient
from shadow_server.bench.case import Case
from shadow_server.bench.churn import churning
from shadow_server.bench.figures import Figures, figures_of, ratios
from shadow_server.bench.load import Round, run_round


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """How much of what.

    Attributes:
        concurrency: requests under way at any time.
        seconds: of each case in each round.
        num_rounds: how often every case runs.
        churn_folders: published in turn in the cases that have churn.
        seed: of prompts and draws.
    """

    concurrency: int = 32
    seconds: float = 10.0
    num_rounds: int = 2
    churn_folders: Sequence[str] = ()
    seed: int = 0


@dataclass(slots=True)
class Result:
    """A case with its rounds so far; `num_publishes` of its churn."""

    case: Case
    rounds: list[Round] = field(default_factory=list)
    num_publishes: int = 0
    churn_error: str | None = None


async def run_cases(
    client: AsyncClient,
    cases: Sequence[Case],
    settings: BenchSettings,
    on_case: Callable[[Case, int], None] = lambda case, number: None,
) -> list[Result]:
    """Return the results of all cases, in order; one short round before warms the server up and is dropped.

    Args:
        client: of the server.
        cases: what to run.
        settings: how.
        on_case: told every case that begins, with its number from 0.
    """
    results = [Result(case) for case in cases]
    for result in results:
        await _run(client, Result(result.case), settings, min(1.0, settings.seconds), 0)
    for number in range(settings.num_rounds):
        for place, result in enumerate(results):
            on_case(result.case, number * len(results) + place)
            await _run(client, result, settings, settings.seconds, number + 1)
    return results


async def _run(
    client: AsyncClient, result: Result, settings: BenchSettings, seconds: float, number: int
) -> None:
    folders = settings.churn_folders if result.case.has_churn else ()
    async with churning(client, folders) as churn:
        done = await run_round(
            client,
            result.case,
            concurrency=settings.concurrency,
            seconds=seconds,
            # Each round its own: the prompts of an earlier one lie in the server's prefix cache.
            seed=f"{settings.seed}/{result.case.name}/{number}",
        )
    result.rounds.append(done)
    result.num_publishes += churn.num_publishes
    result.churn_error = result.churn_error or churn.error


def report(results: Sequence[Result], settings: BenchSettings, model: str) -> dict[str, Any]:
    """Return the whole report, JSON-able: one entry for each case under vLLM's keys, with its ratios to the base."""
    figures = {result.case: figures_of(result.rounds, settings.concurrency) for result in results}
    bases = {case.shape: value for case, value in figures.items() if not case.adapters}
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S"),
        "backend": "shadowserve",
        "model_id": model,
        "cases": [_entry(result, figures[result.case], bases) for result in results],
    }


def _entry(result: Result, figures: Figures, bases: dict[Any, Figures]) -> dict[str, Any]:
    case = result.case
    entry: dict[str, Any] = {
        "name": case.name,
        "num_adapters": len(case.adapters),
        "popularity": case.popularity if case.adapters else None,
        "prompt_tokens": case.shape.prompt_tokens,
        "output_tokens": case.shape.output_tokens,
        "ratios": ratios(figures, bases[case.shape]),
    }
    if case.has_churn:
        entry |= {"publishes": result.num_publishes, "churn_error": result.churn_error}
    return entry | figures
