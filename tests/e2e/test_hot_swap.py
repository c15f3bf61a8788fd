"""Sixty publishes under sixty-four streams: nothing fails, nothing mixes, nothing answers too old, nothing stalls.

The windows with and without publishes alternate within one run, so that what else the machine does meets both. Set
`TEST_SWAP_ROUNDS=1` for one window of sixty seconds between two without.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from canary_server import CanaryServer, canary_server
from hot_swap_run import HOT, SwapResult, SwapRun, SwapSettings

pytestmark = [pytest.mark.engine, pytest.mark.slow]

MAX_P99_RATIO = 1.3
MAX_CLIENT_CORES = 0.3
SETTINGS = SwapSettings(num_rounds=int(os.environ.get("TEST_SWAP_ROUNDS", "3")))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CanaryServer]:
    options = ("--max-num-seqs", "80", "--max-num-batched-tokens", "2048")
    with canary_server(tmp_path_factory.mktemp("hot-swap"), *options) as running:
        yield running


@pytest.fixture(scope="module")
def result(server: CanaryServer, tmp_path_factory: pytest.TempPathFactory) -> SwapResult:
    run = SwapRun(server.url, server.base, server.root, SETTINGS)
    found = run.run(tmp_path_factory.mktemp("load"))
    if path := os.environ.get("TEST_SWAP_FIGURES"):
        Path(path).write_text(json.dumps(found.summary(), indent=1) + "\n")
    return found


def test_no_request_fails(result: SwapResult) -> None:
    assert result.failed() == []
    assert len(result.report.records) > 1000
    assert len(result.publishes) == SETTINGS.num_publishes + 1


def test_no_answer_mixes_versions(result: SwapResult) -> None:
    assert result.mixed() == []


def test_every_answer_is_of_the_version_that_its_headers_name(result: SwapResult) -> None:
    assert result.misnamed() == []
    versions = [publish.version for publish in result.publishes]
    assert versions == list(range(1, len(versions) + 1))


def test_a_request_after_the_acknowledgement_gets_that_version_or_a_newer_one(
    result: SwapResult,
) -> None:
    assert result.stale() == []
    assert result.premature() == []
    # Else the comparison would have had nothing to find.
    assert result.num_versions_heard() > SETTINGS.num_publishes * 0.9


@pytest.mark.timing
def test_streams_do_not_stall_while_versions_change(result: SwapResult) -> None:
    figures = result.summary()
    assert result.p99_ratio() <= MAX_P99_RATIO, json.dumps(figures, indent=1)
    assert figures["client_cpu_cores"] < MAX_CLIENT_CORES


def _cards(server: CanaryServer) -> list[dict[str, Any]]:
    with server.client() as client:
        return client.get("/v1/adapters").json()["data"]


def test_superseded_versions_have_left_their_slots(
    server: CanaryServer, result: SwapResult
) -> None:
    """The last answer of an older version ended long ago: only current versions are listed, and on the device."""
    deadline = time.monotonic() + 1.0
    while True:
        cards = [card for card in _cards(server) if card["name"] == HOT]
        if len(cards) == 1 or time.monotonic() > deadline:
            break
    assert [card["version"] for card in cards] == [len(result.publishes)]
    assert cards[0]["state"] == "RESIDENT"
