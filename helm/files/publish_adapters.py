"""Publishes the chart's `adapters` that come from a hub, and pins those that are to be kept.

Runs in: a Job after each installation and upgrade. Adapters with a path are options of the server's command line.

    ADMIN_KEY=... python publish_adapters.py --url URL --adapters adapters.json --ready-seconds N

Publishing the same revision again changes nothing, so a Job may be repeated.
"""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

POLL_SECONDS = 2.0
# A publish answers when the adapter is downloaded, checked and loaded.
PUBLISH_SECONDS = 1800.0


class PublishError(Exception):
    """The server is not ready or refused an adapter; one sentence."""


def wait_until_ready(client: httpx.Client, limit_seconds: float) -> None:
    """Return once the server serves requests; raises PublishError after the limit."""
    started_at = time.monotonic()
    while not _is_ready(client):
        if time.monotonic() - started_at > limit_seconds:
            raise PublishError(f"the server is not ready after {limit_seconds:g} s")
        time.sleep(POLL_SECONDS)


def publish(client: httpx.Client, adapter: Mapping[str, Any]) -> str:
    """Publish, pin or unpin one adapter as its values say; returns a line about it. Raises PublishError."""
    name = f"{adapter['tenant']}/{adapter['name']}" if adapter.get("tenant") else adapter["name"]
    done = []
    if hub := adapter.get("hub"):
        card = _post(client, name, "/v1/adapters", {"name": name, "hub": hub})
        done.append(f"version {card['version']}, {card['digest']}")
    if (is_pinned := adapter.get("pin")) is not None:
        word = "pin" if is_pinned else "unpin"
        _post(client, name, f"/v1/adapters/{name}/{word}", None)
        done.append(f"{word}ned")
    return f"{name}: {', '.join(done)}"


def _post(client: httpx.Client, name: str, path: str, body: object) -> dict[str, Any]:
    try:
        answer = client.post(path, json=body) if body else client.post(path)
    except httpx.HTTPError as error:
        raise PublishError(f"{name}: {error}") from error
    if answer.is_error:
        raise PublishError(f"{name}: {answer.status_code} {_message(answer)}")
    card: dict[str, Any] = answer.json()
    return card


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready", timeout=10).is_success
    except httpx.HTTPError:
        return False


def main() -> int:
    """Run the command; 1 when an adapter could not be published, after all were tried."""
    parser = ArgumentParser(description="Publish the adapters of a release.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--adapters", type=Path, required=True)
    parser.add_argument("--ready-seconds", type=float, required=True)
    args = parser.parse_args()
    key = os.environ.get("ADMIN_KEY", "").strip()
    headers = {"authorization": f"Bearer {key}"} if key else {}
    wanted = [a for a in json.loads(args.adapters.read_text()) if "hub" in a or "pin" in a]
    num_failed = 0
    with httpx.Client(base_url=args.url, headers=headers, timeout=PUBLISH_SECONDS) as client:
        try:
            wait_until_ready(client, args.ready_seconds)
        except PublishError as error:
            _say(str(error))
            return 1
        for adapter in wanted:
            try:
                _say(publish(client, adapter))
            except PublishError as error:
                num_failed += 1
                _say(str(error))
    return 1 if num_failed else 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
