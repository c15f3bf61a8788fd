"""Ten times the load that the server takes: the rest is refused at once, and what is admitted is answered."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from load_client import Group, Plan, Report, finish_load, quantile, started_load
from noisy_tenant_run import percentiles
from tenant_server import CROWD, NUMBERS, TenantServer
from version_canary import canary_prompt, token_of

pytestmark = [pytest.mark.engine, pytest.mark.slow]

MAX_RUNNING, MAX_QUEUED = 32, 32
"""Of the server in conftest.py."""

NUM_FULL = MAX_RUNNING - MAX_RUNNING // 8
"""Clients that ask one after the other; a place is given back a moment after its answer's last byte."""

SECONDS = 10.0
EXCESS = 10
MAX_MEDIAN_REFUSAL_SECONDS = 0.010


@pytest.fixture(scope="module")
def loads(tenants: TenantServer, tmp_path_factory: pytest.TempPathFactory) -> list[Report]:
    """Measure what the server answers when it is just full, then offer ten times as much."""
    full = run(tenants, tmp_path_factory.mktemp("full"), NUM_FULL, None)
    rate = EXCESS * sum(record.is_complete for record in full.records) / SECONDS
    over = run(tenants, tmp_path_factory.mktemp("over"), 20 * (MAX_RUNNING + MAX_QUEUED), rate)
    if path := os.environ.get("TEST_OVERLOAD_FIGURES"):
        refused = sorted(r.ended_at - r.sent_at for r in over.records if r.status == 503)
        figures = {"offered_per_second": rate, "answered": sum(r.is_complete for r in over.records)}
        figures |= {"refusal_ms": percentiles(refused)}
        Path(path).write_text(json.dumps(figures, indent=1) + "\n")
    return [full, over]


def run(tenants: TenantServer, directory: Path, most: int, rate: float | None) -> Report:
    start = time.monotonic() + 3.0
    body = {"adapter": "own", "max_tokens": 60, "ignore_eos": True, "stream": True}
    body |= {"prompt": canary_prompt(60, 1), "temperature": 0}
    headers = {"authorization": f"Bearer {tenants.keys[CROWD]}"}
    group = Group(CROWD, [body], most, [(start, start + SECONDS)], rate, headers)
    host, port = tenants.server.url.removeprefix("http://").split(":")
    with started_load(Plan(host, int(port), [group]), directory) as process:
        return finish_load(process, directory, 120)


def test_as_many_clients_as_the_engine_runs_are_all_answered(loads: list[Report]) -> None:
    assert [record for record in loads[0].records if not record.is_complete] == []


def test_what_is_admitted_is_answered_rightly(loads: list[Report]) -> None:
    admitted = [record for record in loads[1].records if record.status == 200]
    assert len(admitted) >= MAX_RUNNING + MAX_QUEUED
    for record in admitted:
        assert record.is_complete
        assert [token for token, _ in record.said] == [token_of(NUMBERS[CROWD])]


def test_the_rest_is_refused(loads: list[Report]) -> None:
    refused = [record for record in loads[1].records if record.status != 200]
    assert len(refused) > 0.5 * len(loads[1].records)
    for record in refused:
        assert record.status == 503, record
        assert json.loads(record.error)["error"]["code"] == "server_overloaded"
        assert int(record.headers["retry-after"]) >= 1


@pytest.mark.timing
def test_a_refusal_takes_no_time(loads: list[Report]) -> None:
    refused = [record for record in loads[1].records if record.status == 503]
    seconds = sorted(record.ended_at - record.sent_at for record in refused)
    assert quantile(seconds, 0.5) < MAX_MEDIAN_REFUSAL_SECONDS
