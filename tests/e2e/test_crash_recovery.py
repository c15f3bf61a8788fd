"""A server killed in the middle of publishes comes back with every version that it had acknowledged."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from canary_server import CanaryServer, canary_server
from shadow_runtime.registry import RegistrySettings
from version_canary import build_canary, canary_prompt, token_of

pytestmark = [pytest.mark.engine, pytest.mark.slow]

NAME = "hot"
NUM_PREPARED = 40
KILL_AFTER = (3, 11)
"""Acknowledged publishes before the kill; the instant within the next ones differs."""


@dataclass
class Publisher(threading.Thread):
    """Publishes prepared canaries until the server is gone; keeps what was acknowledged.

    Attributes:
        server: to publish to.
        first: number of the first canary.
        acknowledged: versions and numbers, in order.
        enough: set when `num_enough` publishes were acknowledged.
    """

    server: CanaryServer
    first: int
    num_enough: int
    acknowledged: list[tuple[int, int]] = field(default_factory=list)
    enough: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__()

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        with self.server.client() as client:
            for number in range(self.first, self.first + NUM_PREPARED):
                body = {"name": NAME, "path": f"{number}"}
                try:
                    answer = client.post("/v1/adapters", json=body)
                except httpx.TransportError:
                    return
                assert answer.status_code == 201, answer.text
                self.acknowledged.append((answer.json()["version"], number))
                if len(self.acknowledged) >= self.num_enough:
                    self.enough.set()


def kill_while_publishing(server: CanaryServer, first: int, num_enough: int) -> Publisher:
    for number in range(first, first + NUM_PREPARED):
        build_canary(server.base, server.root / f"{number}", number)
    publisher = Publisher(server, first, num_enough)
    publisher.start()
    assert publisher.enough.wait(60)
    os.killpg(server.process.pid, signal.SIGKILL)
    publisher.join()
    server.process.wait()
    return publisher


def current(client: httpx.Client) -> tuple[int, int]:
    """Return version and token that the name answers with; every token of the answer is the same."""
    body = {"prompt": canary_prompt(70, 1), "adapter": NAME, "max_tokens": 16, "temperature": 0}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    (word,) = set(answer.json()["choices"][0]["text"].split())
    return int(answer.headers["x-shadow-adapter-version"]), int(word.removeprefix("w"))


def check_versions(client: httpx.Client, known: dict[int, int]) -> None:
    """Every acknowledged version is there and says its number; beyond them at most the one under way."""
    version, said = current(client)
    assert max(known) <= version <= max(known) + 1
    assert said == token_of(known.get(version, known[max(known)] + 1))
    cards = client.get(f"/v1/adapters/{NAME}/versions").json()["data"]
    assert [card["version"] for card in cards] == list(range(1, version + 1))
    assert [card["version"] for card in cards if card["is_current"]] == [version]


def leave_half_a_publish(server: CanaryServer) -> list[Path]:
    """Return what the kill left in the staging area and what this adds, all of it grown old.

    Whether the kill met a publish with staged files is chance; so one is always there.
    """
    staging = server.state / "store" / "staging"
    half = staging / uuid.uuid4().hex
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    left = list(staging.iterdir())
    for path in (*staging.glob("*/*"), *left):
        os.utime(path, (0, 0))
    return left


def wait_until_collected(paths: list[Path]) -> None:
    deadline = time.monotonic() + 2 * RegistrySettings().collect_after_seconds
    while any(path.exists() for path in paths):
        assert time.monotonic() < deadline, "the store never collected what the dead server left"
        time.sleep(0.5)


@pytest.mark.timeout(900)
def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    known: dict[int, int] = {}
    for index, num_enough in enumerate(KILL_AFTER):
        with canary_server(tmp_path) as server:
            if known:
                with server.client() as client:
                    check_versions(client, known)
            publisher = kill_while_publishing(server, 40 * index, num_enough)
            known |= dict(publisher.acknowledged)
            last = max(known)
            assert len(publisher.acknowledged) < NUM_PREPARED
    left = leave_half_a_publish(server)
    with canary_server(tmp_path) as server, server.client() as client:
        check_versions(client, known)
        oldest = min(known)
        rolled = client.post(f"/v1/adapters/{NAME}/rollback", json={"version": oldest})
        assert rolled.status_code in (200, 201), rolled.text
        version, said = current(client)
        assert version > last
        assert said == token_of(known[oldest])
        wait_until_collected(left)
