"""`shadowserve bench`: what adapters cost on a running server, as ratios to its bare base.

Runs in: the command's own process.
"""

from __future__ import annotations

import asyncio
import json as json_module
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from shadow_client import AsyncClient, Client
from shadow_client.error import PermissionDeniedError
from shadow_client.session import DEFAULT_URL
from shadow_server.bench.case import SHAPES, SWEEP, Case, plan
from shadow_server.bench.figures import BUSY_CLIENT_CORES
from shadow_server.bench.popularity import POPULARITIES, Popularity
from shadow_server.bench.run import BenchSettings, report, run_cases
from shadow_server.command.connection import Json, Key, KeyFile, Url, connect, connect_many
from shadow_server.command.exit_code import ExitCode
from shadow_server.command.output import write_json, write_note, write_table
from shadow_server.command.scrape import read_samples

_SLOTS = "vllm:max_gpu_lora_adapters"
_HEADERS = ("case", "requests", "failed", "tokens/s", "TTFT p50", "p99", "ITL p50", "p99")
_RATIOS = (
    "output_throughput",
    "median_ttft_ms",
    "p99_ttft_ms",
    "median_itl_ms",
    "p99_itl_ms",
)


def bench(
    adapters: Annotated[
        list[str] | None, typer.Argument(help="Who is asked; default: all that the server lists.")
    ] = None,
    distinct: Annotated[
        str, typer.Option(help="Numbers of distinct adapters, with commas.")
    ] = ",".join(map(str, SWEEP)),
    popularity: Annotated[
        list[str] | None,
        typer.Option(help=f"Repeatable: {', '.join(POPULARITIES)}. Default: distinct."),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help=f"Repeatable: {', '.join(SHAPES)}. Default: mixed."),
    ] = None,
    overflow: Annotated[
        bool, typer.Option("--overflow", help="Twice as many adapters as slots, too.")
    ] = False,
    churn: Annotated[
        list[str] | None,
        typer.Option(help="A folder of the server's, published every second; repeatable."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way.")] = 32,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each case in each round.")] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, help="How often every case runs.")] = 2,
    seed: Annotated[int, typer.Option(help="Of prompts and draws.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a PNG; needs matplotlib.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Measure what adapters cost: the same load with and without them, as ratios to the bare base."""
    _check_files(out, plot)
    settings = BenchSettings(concurrency, seconds, rounds, tuple(churn or ()), seed)
    with connect(url, key, key_file) as client:
        names = list(adapters or _listed(client))
        num_slots = _num_slots(client) if overflow else None
        cases = plan(
            names,
            [SHAPES[name] for name in _chosen(shape, SHAPES, "mixed", "--shape")],
            counts=_numbers(distinct),
            popularities=_popularities(popularity),
            num_slots=num_slots,
            has_churn=bool(churn),
        )
        _note_what_is_left_out(
            names, [*_numbers(distinct), *([2 * num_slots] if num_slots else [])]
        )
        model = next((model.id for model in client.models() if model.parent is None), "")
    found = asyncio.run(_measure(connect_many(url, key, key_file), cases, settings, model))
    if out is not None:
        out.write_text(json_module.dumps(found, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        from shadow_server.bench.plot import write_plot

        write_plot(found, plot)
    _show(found, is_json=json)
    if not all(case["completed"] for case in found["cases"]):
        raise typer.Exit(ExitCode.FAILED)


async def _measure(
    client: AsyncClient, cases: list[Case], settings: BenchSettings, model: str
) -> dict[str, Any]:
    with _progress(len(cases) * settings.num_rounds) as tell:
        async with client:
            results = await run_cases(client, cases, settings, tell)
    return report(results, settings, model)


def _listed(client: Client) -> list[str]:
    # Of a name that was just published the list has the version that drains, too.
    usable = (a for a in client.adapters.list() if a.failure is None and a.state != "DRAINING")
    return list(dict.fromkeys(adapter.name for adapter in usable))


def _chosen(
    given: list[str] | None, known: Sequence[str] | Any, default: str, flag: str
) -> list[str]:
    for name in given or ():
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}", param_hint=flag)
    return given or [default]


def _popularities(given: list[str] | None) -> list[Popularity]:
    chosen = _chosen(given, POPULARITIES, "distinct", "--popularity")
    return [name for name in POPULARITIES if name in chosen]


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise typer.BadParameter(f"{text!r} is no list of numbers", param_hint="--distinct")
    return numbers


def _num_slots(client: Client) -> int | None:
    try:
        samples = read_samples(client.metrics())
    except PermissionDeniedError:
        write_note("the number of slots is in /metrics, which needs an admin's key: no overflow")
        return None
    return next((int(sample.value) for sample in samples if sample.name == _SLOTS), None)


def _check_files(out: Path | None, plot: Path | None) -> None:
    """Find out before the minutes of a run, and not behind them, that its report cannot be written."""
    for flag, path in (("--out", out), ("--plot", plot)):
        if path is not None and not path.parent.is_dir():
            raise typer.BadParameter(f"there is no folder '{path.parent}'", param_hint=flag)
    if plot is not None and find_spec("matplotlib") is None:
        message = "a plot needs matplotlib (pip install matplotlib)"
        raise typer.BadParameter(message, param_hint="--plot")


def _note_what_is_left_out(names: Sequence[str], counts: Sequence[int]) -> None:
    missing = [count for count in counts if count > len(names)]
    if missing:
        write_note(
            f"the server has {len(names)} adapters: nothing with {', '.join(map(str, missing))}"
        )


@contextmanager
def _progress(num_cases: int) -> Iterator[Callable[[Case, int], None]]:
    if not sys.stderr.isatty():
        yield lambda case, number: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("warming up", total=num_cases)
        yield lambda case, number: bar.update(task, description=case.name, completed=number)


def _show(found: dict[str, Any], *, is_json: bool) -> None:
    if is_json:
        write_json(found)
    else:
        write_table(_HEADERS, [_cells(case) for case in found["cases"]])
        write_note("times and throughput over the bare base's, which is in ms and tokens/s")
    for case in found["cases"]:
        _note_failures(case)
    busiest = max(case["client_cpu_cores"] for case in found["cases"])
    if busiest > BUSY_CLIENT_CORES:
        write_note(f"the clients needed {busiest:.2f} cores: they may be what was measured")


def _note_failures(case: dict[str, Any]) -> None:
    if case["failed"]:
        reason = next(iter(case["errors"]), "an answer without a token")
        write_note(f"{case['name']}: {case['failed']} failed: {reason}")
    if case.get("churn_error"):
        write_note(f"{case['name']}: {case['publishes']} publishes: {case['churn_error']}")


def _cells(case: dict[str, Any]) -> list[object]:
    numbers = [case["completed"], case["failed"]]
    if not case["num_adapters"]:
        return [case["name"], *numbers, *(f"{case[key]:.1f}" for key in _RATIOS)]
    values = (case["ratios"][key] for key in _RATIOS)
    return [case["name"], *numbers, *("-" if v is None else f"{v:.2f}" for v in values)]
