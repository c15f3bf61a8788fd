"""Time to first token tells a tenant nothing about another's prompts, though it tells it about its own.

Asked of the bare base and of one adapter that both tenants have under the same digest. The order of the questions is
random in each round. With equal distributions the rank test fails in one of a thousand runs (`MIN_P`).
"""

from __future__ import annotations

import json
import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from noisy_tenant_run import STEADY
from tenant_server import ADMIN, CROWD, TenantServer
from version_canary import build_canary, canary_prompt

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timing]

NUM_ROUNDS = 60
PROMPT_TOKENS = 990
MIN_P = 0.001
SHARED_NUMBER = 77
SEEN_BY_SELF, SEEN_BY_OTHER, FRESH = "seen by self", "seen by the other tenant", "fresh"


def rank_p_value(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p-value of the Mann-Whitney test, by its normal approximation."""
    ranks = {value: rank for rank, value in enumerate(sorted([*first, *second]), 1)}
    n, m = len(first), len(second)
    statistic = sum(ranks[value] for value in first) - n * (n + 1) / 2
    deviation = math.sqrt(n * m * (n + m + 1) / 12)
    return math.erfc(abs(statistic - n * m / 2) / deviation / math.sqrt(2))


@dataclass
class Probe:
    """Times to first token of a tenant, by what was known about the prompt.

    Attributes:
        seconds: the times.
        cached: prompt tokens that the engine took from its cache.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    cached: dict[str, float] = field(default_factory=dict)

    def add(self, kind: str, seconds: float, cached: float) -> None:
        self.seconds.setdefault(kind, []).append(seconds)
        self.cached[kind] = self.cached.get(kind, 0.0) + cached


@pytest.fixture(scope="module")
def shared(tenants: TenantServer) -> str:
    """Publish the same bytes under the name `shared` for both tenants."""
    path = build_canary(tenants.server.base, tenants.server.root / "shared", SHARED_NUMBER)
    digests = set()
    with tenants.client(ADMIN) as client:
        for tenant in (STEADY, CROWD):
            body = {"name": f"{tenant}/shared", "path": str(path)}
            digests.add(client.post("/v1/adapters", json=body).json()["digest"])
    assert len(digests) == 1
    return "shared"


class Prober:
    """Asks as one tenant and another, and sees with an admin's eyes what was cached."""

    def __init__(self, tenants: TenantServer, adapter: str | None) -> None:
        self._clients = {name: tenants.client(name) for name in (STEADY, CROWD, ADMIN)}
        self._adapter = adapter
        self._seeds = iter(range(10**6, 10**9))

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def fresh_prompt(self) -> list[int]:
        return canary_prompt(PROMPT_TOKENS, next(self._seeds) + 1000 * (self._adapter is not None))

    def ask(self, tenant: str, prompt: list[int]) -> tuple[float, float]:
        """Return the seconds to the answer of one token, and how many prompt tokens were cached."""
        body = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "adapter": self._adapter}
        before = self._hits()
        started = time.perf_counter()
        answer = self._clients[tenant].post("/v1/completions", json=body)
        seconds = time.perf_counter() - started
        assert answer.status_code == 200, answer.text
        return seconds, self._hits() - before

    def _hits(self) -> float:
        lines = self._clients[ADMIN].get("/metrics").text.splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith("vllm:prefix_cache_hits_total")
        )


@pytest.fixture(scope="module", params=["base", "shared adapter"])
def probe(request: pytest.FixtureRequest, tenants: TenantServer, shared: str) -> Probe:
    prober = Prober(tenants, None if request.param == "base" else shared)
    found, order = Probe(), random.Random(0)
    for _ in range(10):
        prober.ask(STEADY, prober.fresh_prompt())
    for _ in range(NUM_ROUNDS):
        own, others = prober.fresh_prompt(), prober.fresh_prompt()
        prober.ask(STEADY, own)
        prober.ask(CROWD, others)
        prompts = {SEEN_BY_SELF: own, SEEN_BY_OTHER: others, FRESH: prober.fresh_prompt()}
        for kind in order.sample(list(prompts), 3):
            found.add(kind, *prober.ask(STEADY, prompts[kind]))
    prober.close()
    return found


def test_a_tenant_s_own_prefix_shows_in_the_time(probe: Probe) -> None:
    """What follows could find a difference if there were one."""
    own, fresh = probe.seconds[SEEN_BY_SELF], probe.seconds[FRESH]
    assert rank_p_value(own, fresh) < 1e-9
    assert statistics.median(own) < 0.7 * statistics.median(fresh)
    assert probe.cached[SEEN_BY_SELF] > 0.9 * NUM_ROUNDS * PROMPT_TOKENS


def test_another_tenant_s_prefix_does_not(probe: Probe) -> None:
    other, fresh = probe.seconds[SEEN_BY_OTHER], probe.seconds[FRESH]
    assert probe.cached[SEEN_BY_OTHER] == 0
    assert probe.cached[FRESH] == 0
    medians = {kind: statistics.median(values) for kind, values in probe.seconds.items()}
    assert rank_p_value(other, fresh) > MIN_P, json.dumps(medians)
    effect = medians[FRESH] - medians[SEEN_BY_SELF]
    assert abs(medians[FRESH] - medians[SEEN_BY_OTHER]) < 0.25 * effect, json.dumps(medians)


def test_the_rank_test_itself() -> None:
    generator = random.Random(3)
    values = [generator.gauss(1.0, 0.1) for _ in range(120)]
    assert rank_p_value(values[:60], values[60:]) > 0.01
    assert rank_p_value(values[:60], [v + 0.1 for v in values[60:]]) < 1e-4
    assert rank_p_value([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]) == pytest.approx(0.0495, abs=1e-3)
