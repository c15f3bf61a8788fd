"""`shadowserve top`: adapters as they are used, refreshed until Ctrl-C.

Runs in: the command's own process. rich is imported on a terminal only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from shadow_client import Adapter, Client
from shadow_client.error import PermissionDeniedError
from shadow_client.session import DEFAULT_URL
from shadow_server.command.connection import Json, Key, KeyFile, Url, connect
from shadow_server.command.output import shown, write_json, write_note, write_table
from shadow_server.command.scrape import Series, by_adapter, quantile, read_samples

if TYPE_CHECKING:
    from rich.table import Table

_PATIENCE_SECONDS = 10.0
_BASE, _OTHER = "__base__", "__other__"
_HEADERS = (
    *("adapter", "version", "state", "level", "pinned", "running", "requests", "req/s"),
    *("TTFT p50", "p99", "ITL p50", "p99"),
)
_NO_METRICS = "latencies need an admin's key: /metrics shows every tenant's"


@dataclass(frozen=True, slots=True)
class Row:
    """One adapter, or the base and the rest together, which have no card.

    Attributes:
        adapter: name as series have it.
        card: None for the base and the rest.
        num_requests: since the server began.
        requests_per_second: since the last look; None at the first.
        first_token_p50, first_token_p99, inter_token_p50, inter_token_p99: seconds, of the requests since the last
            look, or of all at the first; None without any.
    """

    adapter: str
    card: Adapter | None
    num_requests: int
    requests_per_second: float | None
    first_token_p50: float | None
    first_token_p99: float | None
    inter_token_p50: float | None
    inter_token_p99: float | None


def top(
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Look once: totals since the start.")
    ] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Show adapters as they are used: requests, time to first token, inter-token latency, residency."""
    with connect(url, key, key_file, timeout_seconds=_PATIENCE_SECONDS) as client:
        monitor = Monitor(client)
        if once or json or not sys.stdout.isatty():
            _show_once(monitor, is_json=json)
        else:
            _show_live(monitor, interval)


class Monitor:
    """Looks at a server, again and again, and says what has changed."""

    def __init__(self, client: Client) -> None:
        self.note: str | None = None
        self._client = client
        self._previous: dict[str, Series] = {}
        self._looked_at: float | None = None

    def look(self) -> list[Row]:
        """Return a row for each adapter, the busiest first, then the base and the rest."""
        cards = {series_name(card): card for card in self._client.adapters.list()}
        series, now = self._series(), time.monotonic()
        seconds = None if self._looked_at is None else now - self._looked_at
        extra = [name for name in (_BASE, _OTHER) if series.get(name, Series()).num_requests]
        rows = [self._row(name, cards[name], series, seconds) for name in cards]
        rows.sort(key=lambda row: (-(row.requests_per_second or 0), -row.num_requests, row.adapter))
        rows += [self._row(name, None, series, seconds) for name in extra]
        self._previous, self._looked_at = series, now
        return rows

    def _series(self) -> dict[str, Series]:
        try:
            return by_adapter(read_samples(self._client.metrics()))
        except PermissionDeniedError:
            self.note = _NO_METRICS
            return {}

    def _row(
        self, name: str, card: Adapter | None, series: dict[str, Series], seconds: float | None
    ) -> Row:
        total = series.get(name, Series())
        new = total.since(self._previous.get(name)) if seconds is not None else total
        return Row(
            adapter=name,
            card=card,
            num_requests=int(total.num_requests),
            requests_per_second=new.num_requests / seconds if seconds else None,
            first_token_p50=quantile(new.first_token, 0.5),
            first_token_p99=quantile(new.first_token, 0.99),
            inter_token_p50=quantile(new.inter_token, 0.5),
            inter_token_p99=quantile(new.inter_token, 0.99),
        )


def series_name(card: Adapter) -> str:
    """Return the name that series have for an adapter: short for the default tenant, else with its tenant."""
    is_full = "/" in card.name or card.tenant == "default"
    return card.name if is_full else f"{card.tenant}/{card.name}"


def cells_of(row: Row) -> tuple[str, ...]:
    """Return a row's cells, as text."""
    card = row.card
    place = ("", "", "", "", "")
    if card is not None:
        pinned = "yes" if card.pinned else ""
        place = (str(card.version), card.state, card.level, pinned, str(card.num_running_requests))
    rate = "" if row.requests_per_second is None else f"{row.requests_per_second:.1f}"
    latencies = (
        *(row.first_token_p50, row.first_token_p99),
        *(row.inter_token_p50, row.inter_token_p99),
    )
    name = shown(row.adapter)
    return (name, *place, str(row.num_requests), rate, *map(_spell_seconds, latencies))


def _spell_seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _show_once(monitor: Monitor, *, is_json: bool) -> None:
    rows = monitor.look()
    if is_json:
        write_json(rows)
        return
    write_table(_HEADERS, [cells_of(row) for row in rows])
    if monitor.note:
        write_note(monitor.note)


def _show_live(monitor: Monitor, interval: float) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(_table(monitor.look(), monitor.note), refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:
        return


def _table(rows: Sequence[Row], note: str | None) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(*_HEADERS, caption=note or "Ctrl-C ends", expand=True)
    for row in rows:
        table.add_row(*map(escape, cells_of(row)))
    return table
