"""A tenant at ten times its quota is refused in order; the tenant beside it hardly notices."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from noisy_tenant_run import NoiseResult, NoiseRun, NoiseSettings
from tenant_server import NUMBERS, TenantServer

pytestmark = [pytest.mark.engine, pytest.mark.slow]

SETTINGS = NoiseSettings()
MAX_P99_RATIO = 1.3


@pytest.fixture(scope="module")
def result(tenants: TenantServer, tmp_path_factory: pytest.TempPathFactory) -> NoiseResult:
    run = NoiseRun(tenants.server.url, tenants.keys, NUMBERS, SETTINGS)
    found = run.run(tmp_path_factory.mktemp("load"))
    if path := os.environ.get("TEST_NOISE_FIGURES"):
        Path(path).write_text(json.dumps(found.summary(), indent=1) + "\n")
    return found


def test_the_noisy_tenant_is_held_to_its_quota(result: NoiseResult) -> None:
    seconds = result.loud[-1][1] - result.leads[0][0]
    rate = SETTINGS.requests_per_minute / 60
    # The burst is there at first, and the windows without the tenant fill it again.
    assert len(result.admitted()) <= SETTINGS.request_burst + 1.1 * rate * seconds
    refused = result.refusals()
    assert len(refused) > 0.5 * len(result.report.of("noisy"))
    assert len(refused) + len(result.admitted()) == len(result.report.of("noisy"))
    for record in refused:
        assert json.loads(record.error)["error"]["code"] == "rate_limit_exceeded"
        assert int(record.headers["retry-after"]) >= 1
        assert "x-ratelimit-limit-requests" in record.headers


def test_the_steady_tenant_is_answered(result: NoiseResult) -> None:
    assert result.failed() == []
    assert len(result.first_tokens(result.quiet)) > 300


@pytest.mark.timing
def test_the_steady_tenant_waits_no_longer_than_alone(result: NoiseResult) -> None:
    assert result.p99_ratio() <= MAX_P99_RATIO, json.dumps(result.summary(), indent=1)
