"""One tenant at ten times its quota beside a steady one: what the steady one notices.

Windows with and without the noisy tenant alternate, so that what else the machine does meets both.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from load_client import Group, Plan, Record, Report, finish_load, quantile, started_load
from version_canary import canary_prompt, token_of

NOISY, STEADY = "noisy", "steady"
_START_SECONDS = 3.0
_RAMP_SECONDS = 6.0  # the steady tenant's prompts are cached by then
_SETTLE_SECONDS = 1.5
_NUM_PROMPTS = 40
_MOST_STEADY = 200
REFUSAL_STATUS = 429


@dataclass(frozen=True)
class NoiseSettings:
    """How much of what.

    Attributes:
        requests_per_minute, request_burst, max_concurrent: quotas of the noisy tenant.
        excess: how many times its quotas the noisy tenant sends.
        steady_rate: requests a second of the steady tenant, which has no quota.
        num_rounds: windows with the noisy tenant; as many without.
        window_seconds: length of a window.
        lead_seconds: how long the noisy tenant has been sending when a window with it begins; its prompts are cached
            by then.
        prompt_tokens: of both.
        noisy_tokens, steady_tokens: of the answers.
        vocab_size: of the base.
    """

    requests_per_minute: int = 120
    request_burst: int = 4
    max_concurrent: int = 2
    excess: int = 10
    steady_rate: float = 10.0
    num_rounds: int = 4
    window_seconds: float = 10.0
    lead_seconds: float = 15.0
    prompt_tokens: int = 200
    noisy_tokens: int = 60
    steady_tokens: int = 8
    vocab_size: int = 256

    def quota_options(self) -> list[str]:
        """Return the options of `tenants create` for the noisy tenant."""
        return [
            "--requests-per-minute",
            str(self.requests_per_minute),
            "--request-burst",
            str(self.request_burst),
            "--max-concurrent-requests",
            str(self.max_concurrent),
        ]


@dataclass
class NoiseResult:
    """What both tenants saw.

    Attributes:
        quiet, loud: windows without and with the noisy tenant.
        leads: when it had begun; a window with it follows each.
        report: of the clients.
        numbers: the canary that each tenant's adapter is.
    """

    quiet: list[tuple[float, float]]
    loud: list[tuple[float, float]]
    leads: list[tuple[float, float]]
    report: Report
    numbers: dict[str, int]

    def failed(self) -> list[Record]:
        """Return the steady tenant's requests without a whole and right answer."""
        expected = token_of(self.numbers[STEADY])
        return [
            r
            for r in self.report.of(STEADY)
            if not r.is_complete or [token for token, _ in r.said] != [expected]
        ]

    def refusals(self) -> list[Record]:
        """Return the noisy tenant's refused requests."""
        return [r for r in self.report.of(NOISY) if r.status == REFUSAL_STATUS]

    def admitted(self) -> list[Record]:
        """Return the noisy tenant's answered requests."""
        return [r for r in self.report.of(NOISY) if r.is_complete]

    def first_tokens(self, windows: Iterable[tuple[float, float]]) -> list[float]:
        """Return the steady tenant's times to first token of requests sent in the windows, sorted, in seconds."""
        spans = list(windows)
        return sorted(
            r.first_at - r.sent_at
            for r in self.report.of(STEADY)
            if r.is_complete and any(start <= r.sent_at < end for start, end in spans)
        )

    def p99_ratio(self) -> float:
        """Return the steady tenant's p99 TTFT beside the noisy one over that alone."""
        loud, quiet = self.first_tokens(self.loud), self.first_tokens(self.quiet)
        return quantile(loud, 0.99) / quantile(quiet, 0.99)

    def _admitted_per_minute(self) -> float:
        """Of the noisy tenant, in the windows with it."""
        seconds = sum(end - start for start, end in self.loud)
        sent = [r.sent_at for r in self.admitted()]
        return 60 / seconds * sum(start <= at < end for at in sent for start, end in self.loud)

    def summary(self) -> dict[str, Any]:
        """Return the figures of the run."""
        refused = sorted(r.ended_at - r.sent_at for r in self.refusals())
        return {
            "steady": {
                "requests": len(self.report.of(STEADY)),
                "failed": len(self.failed()),
                "ttft_ms_alone": percentiles(self.first_tokens(self.quiet)),
                "ttft_ms_beside_noisy": percentiles(self.first_tokens(self.loud)),
                "ttft_ms_before_windows": percentiles(self.first_tokens(self.leads)),
                "ttft_p99_ratio": round(self.p99_ratio(), 3),
            },
            "noisy": {
                "requests": len(self.report.of(NOISY)),
                "answered": len(self.admitted()),
                "answered_per_minute_of_a_window": round(self._admitted_per_minute()),
                "refused": len(refused),
                "refusal_ms": percentiles(refused),
                "skipped": self.report.num_skipped,
            },
            "client_cpu_cores": round(self.report.cpu_seconds / self.report.wall_seconds, 2),
            "client_is_punctual": self.report.is_punctual,
        }


def percentiles(values: list[float]) -> dict[str, float]:
    """Return number, p50, p90, p99 and the largest of sorted seconds, in ms."""
    if not values:
        return {"num": 0}
    parts = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    figures = {name: round(1e3 * quantile(values, part), 2) for name, part in parts.items()}
    return {"num": len(values), **figures}


class NoiseRun:
    """One run against a server that serves each tenant's adapter `own`."""

    def __init__(
        self,
        url: str,
        keys: dict[str, str],
        numbers: dict[str, int],
        settings: NoiseSettings | None = None,
    ) -> None:
        self._url = httpx.URL(url)
        self._keys, self._numbers = keys, numbers
        self._settings = settings or NoiseSettings()

    def run(self, directory: Path) -> NoiseResult:
        """Start the clients and wait for the last answer; `directory` is for their files."""
        quiet, leads, loud = self._windows()
        noise = [(start, end) for (start, _), (_, end) in zip(leads, loud, strict=True)]
        with started_load(self._plan(quiet, noise), directory) as process:
            last = max(end for _, end in quiet + loud)
            report = finish_load(process, directory, 90 + last - time.monotonic())
        return NoiseResult(quiet, loud, leads, report, self._numbers)

    def _windows(self) -> tuple[list[tuple[float, float]], ...]:
        settings = self._settings
        start = time.monotonic() + _START_SECONDS + _RAMP_SECONDS
        quiet, leads, loud = [], [], []
        for _ in range(settings.num_rounds):
            quiet.append((start, start + settings.window_seconds))
            start += settings.window_seconds
            leads.append((start, start + settings.lead_seconds))
            start += settings.lead_seconds
            loud.append((start, start + settings.window_seconds))
            start += settings.window_seconds + _SETTLE_SECONDS
        return quiet, leads, loud

    def _plan(self, quiet: list[tuple[float, float]], noise: list[tuple[float, float]]) -> Plan:
        settings = self._settings
        always = [(quiet[0][0] - _RAMP_SECONDS, noise[-1][1])]
        # So many clients as ten times the concurrency quota, which together send ten times the rate quota.
        num_clients = settings.excess * settings.max_concurrent
        pause = num_clients * 60 / (settings.excess * settings.requests_per_minute)
        steady = self._group(STEADY, settings.steady_tokens, always)
        noisy = self._group(NOISY, settings.noisy_tokens, noise)
        groups = [
            replace(steady, num_clients=_MOST_STEADY, rate=settings.steady_rate),
            replace(noisy, num_clients=num_clients, pause_seconds=pause),
        ]
        return Plan(self._url.host, self._url.port or 80, groups)

    def _group(self, tenant: str, num_tokens: int, active: list[tuple[float, float]]) -> Group:
        settings = self._settings
        fields = {
            "adapter": "own",
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        prompts = [
            canary_prompt(settings.prompt_tokens, seed, vocab_size=settings.vocab_size)
            for seed in range(_NUM_PROMPTS)
        ]
        bodies = [{"prompt": prompt, **fields} for prompt in prompts]
        headers = {"authorization": f"Bearer {self._keys[tenant]}"}
        return Group(tenant, bodies, 1, active, headers=headers)
