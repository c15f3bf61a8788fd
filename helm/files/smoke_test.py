"""`helm test`: the server answers, with the demo's adapter loaded for the purpose and with every declared adapter.

Runs in: a pod that the test makes.

    ADMIN_KEY=... python smoke_test.py --url URL --model NAME --adapters adapters.json [--demo DIR]

With `--demo` the server has the demo's base: an adapter of the image is uploaded, must give its known answer to the
letter, and is deleted again. Without it no shipped adapter fits the base.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

import httpx

DEMO_ADAPTER = "french"
MAX_TOKENS = 48


class SmokeError(Exception):
    """Something is not as it must be; one sentence."""


class Smoke:
    """The checks against one server."""

    def __init__(self, client: httpx.Client, model: str) -> None:
        self._client = client
        self._model = model

    def check_demo(self, demo: Path) -> None:
        """Load an adapter of the demo under a name of its own, and compare its answer."""
        prompt = json.loads((demo / "prompts.json").read_text(encoding="utf-8"))[0]
        with self._uploaded(demo / "adapters" / DEMO_ADAPTER) as card:
            text, headers = self.complete(card["id"], prompt["prompt"])
        expected = prompt["expected"][DEMO_ADAPTER]
        if text != expected:
            raise SmokeError(f"{DEMO_ADAPTER} answers {text!r}, not {expected!r}")
        if headers.get("x-shadow-adapter-digest") != card["digest"]:
            raise SmokeError("the answer is of another digest than the uploaded adapter's")
        _say(f"{DEMO_ADAPTER}: {text.strip()} ({card['digest']})")

    def complete(self, adapter: str | None, prompt: str) -> tuple[str, httpx.Headers]:
        """Return a completion and the answer's headers, which must name the adapter that was asked for."""
        body = {"model": self._model, "adapter": adapter, "prompt": prompt, "temperature": 0}
        answer = self._checked("POST", "/v1/completions", json=body | {"max_tokens": MAX_TOKENS})
        spoke = answer.headers.get("x-shadow-adapter")
        # A server with tenants answers with the full name.
        if adapter is not None and not f"/{spoke}".endswith(f"/{adapter}"):
            raise SmokeError(f"{adapter} was asked and {spoke} answered")
        return answer.json()["choices"][0]["text"], answer.headers

    @contextlib.contextmanager
    def _uploaded(self, folder: Path) -> Iterator[dict[str, str]]:
        name = f"helm-test-{secrets.token_hex(4)}"
        files = [("file", (p.name, p.read_bytes())) for p in folder.iterdir() if p.is_file()]
        card = self._checked("POST", "/v1/adapters", data={"name": name}, files=files).json()
        try:
            yield card
        finally:
            self._checked("DELETE", f"/v1/adapters/{name}")

    def _checked(self, method: str, path: str, **options: object) -> httpx.Response:
        answer = self._client.request(method, path, **options)  # type: ignore[arg-type]
        if answer.is_error:
            raise SmokeError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        return answer


def main() -> int:
    """Run the checks; 1 with the reason at the first that fails."""
    parser = ArgumentParser(description="Check a release.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapters", type=Path, required=True)
    parser.add_argument("--demo", type=Path)
    args = parser.parse_args()
    key = os.environ.get("ADMIN_KEY", "").strip()
    headers = {"authorization": f"Bearer {key}"} if key else {}
    adapters = json.loads(args.adapters.read_text())
    with httpx.Client(base_url=args.url, headers=headers, timeout=120) as client:
        smoke = Smoke(client, args.model)
        try:
            smoke.complete(None, "the old fox")
            if args.demo is not None:
                smoke.check_demo(args.demo)
            for adapter in adapters:
                tenant = f"{adapter['tenant']}/" if adapter.get("tenant") else ""
                smoke.complete(tenant + adapter["name"], "the old fox")
                _say(f"{tenant}{adapter['name']}: answers")
        except (SmokeError, httpx.HTTPError) as error:
            _say(f"failed: {error}")
            return 1
    _say("passed")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
