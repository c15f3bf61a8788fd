"""Publishing under load: streaming clients, a new version every so often, and what the clients saw of it.

One name gets new canaries while most clients stream from it; others stream from adapters that stay, in both formats,
and from the bare base. All prompts of one length are the same, so that every request would find another version's
prefix if keys and values were shared.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from load_client import Group, Plan, Record, Report, finish_load, quantile, started_load
from version_canary import BASE, Format, build_canary, canary_prompt, silent_tokens, token_of

HOT, STEADY, OTHER = "hot", "steady", "other"
STEADY_NUMBER, OTHER_NUMBER = 126, 127
_PREPARE_SECONDS = 2.0
_RAMP_SECONDS = 4.0
_SETTLE_SECONDS = 1.0


@dataclass(frozen=True)
class SwapSettings:
    """How much of what.

    Attributes:
        num_hot, num_steady, num_other, num_base: streaming clients by what they ask for.
        num_publishes: new versions in all.
        period_seconds: between two publishes.
        num_rounds: swap windows, each with a window of the same length without swaps before it, and one after the last.
        output_tokens: lengths of the answers, taken in turn, so that they do not end together.
        prompt_tokens: lengths of the prompts.
        vocab_size: of the base.
        other_format: checkpoint format of the adapter of the `num_other` clients.
        has_fresh_prompts: no prompt comes twice. Otherwise there are few, which the prefix cache knows but for those
            of a version that is new: its first requests compute what without publishes nobody has to.
    """

    num_hot: int = 48
    num_steady: int = 6
    num_other: int = 4
    num_base: int = 6
    num_publishes: int = 60
    period_seconds: float = 1.0
    num_rounds: int = 3
    output_tokens: tuple[int, ...] = (40, 60, 80, 100, 120)
    prompt_tokens: tuple[int, ...] = (40, 80)
    vocab_size: int = 256
    other_format: Format = "peft"
    has_fresh_prompts: bool = False

    @property
    def window_seconds(self) -> float:
        """Length of each window."""
        return self.num_publishes / self.num_rounds * self.period_seconds


@dataclass(frozen=True)
class Publish:
    """One publish: canary `number` under the hot name, as the server answered it."""

    number: int
    sent_at: float
    acknowledged_at: float
    status: int
    version: int
    digest: str

    @property
    def seconds(self) -> float:
        """From the request to the acknowledgement."""
        return self.acknowledged_at - self.sent_at


@dataclass(frozen=True)
class Window:
    """A stretch of the run, with publishes or without."""

    is_swapping: bool
    start: float
    end: float


@dataclass
class SwapResult:
    """What the clients saw.

    Attributes:
        publishes: of the hot name, the first before the clients started.
        windows: in order.
        report: of the clients.
        numbers: digest to the number of the canary, for every digest of the run.
    """

    publishes: list[Publish]
    windows: list[Window]
    report: Report
    numbers: dict[str, int] = field(default_factory=dict)

    def failed(self) -> list[Record]:
        """Return the requests without a whole answer."""
        return [record for record in self.report.records if not record.is_complete]

    def mixed(self) -> list[Record]:
        """Return the answers that say more than one thing, or nothing."""
        return [record for record in self._complete() if len(record.said) != 1]

    def misnamed(self) -> list[Record]:
        """Return the answers that say another adapter than the one in their headers."""
        return [r for r in self._complete() if not self._says_what_it_names(r)]

    def stale(self) -> list[Record]:
        """Return the answers by a version older than one acknowledged before the request was sent."""
        return [r for r in self._complete(HOT) if self._version(r) < self._acknowledged(r.sent_at)]

    def premature(self) -> list[Record]:
        """Return the answers by a version whose publish had not even been sent when the answer began."""
        sent = {publish.version: publish.sent_at for publish in self.publishes}
        return [r for r in self._complete(HOT) if r.first_at < sent[self._version(r)]]

    def _complete(self, *groups: str) -> list[Record]:
        return [r for r in self.report.of(*(groups or self.report.gaps)) if r.is_complete]

    def _says_what_it_names(self, record: Record) -> bool:
        digest = record.headers.get("x-shadow-adapter-digest")
        number = None if digest is None else self.numbers[digest]
        said = {token for token, _ in record.said}
        return said <= {BASE if number is None else token_of(number)} and (
            (number is None) == (record.asked is None)
        )

    def _version(self, record: Record) -> int:
        return int(record.headers["x-shadow-adapter-version"])

    def _acknowledged(self, instant: float) -> int:
        done = (p.version for p in self.publishes if p.acknowledged_at < instant)
        return max(done, default=0)

    def num_versions_heard(self) -> int:
        """Return how many versions of the hot name answered."""
        return len({self._version(record) for record in self._complete(HOT)})

    def gaps(self, *, is_swapping: bool, groups: Iterable[str] = ()) -> list[float]:
        """Return the inter-token gaps, in seconds, that ended in windows with or without publishes, sorted."""
        spans = [(w.start, w.end) for w in self.windows if w.is_swapping is is_swapping]
        names = list(groups) or list(self.report.gaps)
        return sorted(
            gap
            for name in names
            for instant, gap in self.report.gaps[name]
            if any(start <= instant < end for start, end in spans)
        )

    def p99_ratio(self) -> float:
        """Return p99 of the gaps with publishes over p99 of those without."""
        return quantile(self.gaps(is_swapping=True), 0.99) / quantile(
            self.gaps(is_swapping=False), 0.99
        )

    def summary(self) -> dict[str, Any]:
        """Return the figures of the run."""
        records, seconds = self.report.records, sorted(p.seconds for p in self.publishes[1:])
        return {
            "requests": len(records),
            "tokens": sum(record.num_tokens for record in records),
            "failed": len(self.failed()),
            "mixed": len(self.mixed()),
            "misnamed": len(self.misnamed()),
            "stale": len(self.stale()),
            "premature": len(self.premature()),
            "versions_published": len(self.publishes),
            "versions_heard": self.num_versions_heard(),
            "publish_ms": {"p50": _ms(seconds, 0.5), "p99": _ms(seconds, 0.99)},
            "itl_ms_without": _row(self.gaps(is_swapping=False)),
            "itl_ms_with": _row(self.gaps(is_swapping=True)),
            "itl_p99_ratio": round(self.p99_ratio(), 3),
            "itl_p99_by_window_ms": [
                {"with" if w.is_swapping else "without": _ms(self._gaps_in(w), 0.99)}
                for w in self.windows
            ],
            "client_cpu_cores": round(self.report.cpu_seconds / self.report.wall_seconds, 2),
            "client_is_punctual": self.report.is_punctual,
        }

    def _gaps_in(self, window: Window) -> list[float]:
        every = (pair for pairs in self.report.gaps.values() for pair in pairs)
        return sorted(gap for instant, gap in every if window.start <= instant < window.end)


def _ms(values: Sequence[float], part: float) -> float:
    return round(1e3 * quantile(values, part), 3)


def _row(values: Sequence[float]) -> dict[str, float]:
    parts = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}
    return {"num": len(values), **{name: _ms(values, part) for name, part in parts.items()}}


class SwapRun:
    """One run against a started server that may load adapters below `root` and knows none of the names yet."""

    def __init__(
        self, url: str, base: Path, root: Path, settings: SwapSettings | None = None
    ) -> None:
        self._url = httpx.URL(url)
        self._base, self._root = base, root
        self._settings = settings or SwapSettings()
        self._numbers: dict[str, int] = {}
        self._publishes: list[Publish] = []

    def run(self, directory: Path) -> SwapResult:
        """Prepare the adapters, start the clients, publish, and wait for the last answer.

        Args:
            directory: for the clients' plan and result.
        """
        settings = self._settings
        for number in range(settings.num_publishes + 1):
            build_canary(self._base, self._root / f"{HOT}-{number}", number)
        build_canary(self._base, self._root / STEADY, STEADY_NUMBER)
        build_canary(self._base, self._root / OTHER, OTHER_NUMBER, settings.other_format)
        with httpx.Client(base_url=self._url, timeout=60) as client:
            self._publish(client, STEADY, STEADY, STEADY_NUMBER)
            self._publish(client, OTHER, OTHER, OTHER_NUMBER)
            self._publishes.append(self._publish(client, HOT, f"{HOT}-0", 0))
            windows = self._windows()
            with started_load(self._plan(windows), directory) as process:
                self._publish_in(client, windows)
                report = finish_load(process, directory, 120 + windows[-1].end - time.monotonic())
        return SwapResult(self._publishes, windows, report, self._numbers)

    def _windows(self) -> list[Window]:
        start = time.monotonic() + _PREPARE_SECONDS + _RAMP_SECONDS
        length = self._settings.window_seconds
        windows = []
        for index in range(2 * self._settings.num_rounds + 1):
            windows.append(Window(index % 2 == 1, start, start + length))
            # What the last publish of a window leaves behind must not count as a window without.
            start += length + (_SETTLE_SECONDS if index % 2 else 0.0)
        return windows

    def _plan(self, windows: list[Window]) -> Plan:
        settings = self._settings
        active = [(windows[0].start - _RAMP_SECONDS, windows[-1].end)]
        sizes: dict[str, tuple[int, str | None]] = {
            HOT: (settings.num_hot, HOT),
            STEADY: (settings.num_steady, STEADY),
            OTHER: (settings.num_other, OTHER),
            "base": (settings.num_base, None),
        }
        fresh = silent_tokens(settings.vocab_size) if settings.has_fresh_prompts else None
        groups = [
            Group(name, self._bodies(adapter), number, active, fresh_tokens=fresh)
            for name, (number, adapter) in sizes.items()
        ]
        return Plan(self._url.host, self._url.port or 80, groups)

    def _bodies(self, adapter: str | None) -> list[dict[str, Any]]:
        settings = self._settings
        prompts = [
            canary_prompt(n, n, vocab_size=settings.vocab_size) for n in settings.prompt_tokens
        ]
        return [
            {
                "prompt": prompts[index % len(prompts)],
                "max_tokens": settings.output_tokens[index % len(settings.output_tokens)],
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                **({} if adapter is None else {"adapter": adapter}),
            }
            for index in range(len(prompts) * len(settings.output_tokens))
        ]

    def _publish_in(self, client: httpx.Client, windows: list[Window]) -> None:
        number = 0
        for window in windows:
            if not window.is_swapping:
                continue
            for index in range(self._settings.num_publishes // self._settings.num_rounds):
                instant = window.start + index * self._settings.period_seconds
                threading.Event().wait(max(0.0, instant - time.monotonic()))
                number += 1
                self._publishes.append(self._publish(client, HOT, f"{HOT}-{number}", number))

    def _publish(self, client: httpx.Client, name: str, folder: str, number: int) -> Publish:
        sent_at = time.monotonic()
        answer = client.post("/v1/adapters", json={"name": name, "path": folder})
        acknowledged_at = time.monotonic()
        if answer.status_code != 201:
            raise RuntimeError(f"publish of {folder}: {answer.status_code} {answer.text}")
        card = answer.json()
        self._numbers[card["digest"]] = number
        return Publish(
            number, sent_at, acknowledged_at, answer.status_code, card["version"], card["digest"]
        )
