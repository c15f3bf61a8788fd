"""Debian's Chromium without a screen, driven over WebDriver: the protocol is JSON over HTTP, and httpx speaks that."""

from __future__ import annotations

import base64
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from running_server import free_port

START_SECONDS = 60
WAIT_SECONDS = 30.0
TAB = "\ue004"
ENTER = "\ue007"
_POLL_SECONDS = 0.05
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key that stands for a reference to an element, by the standard."""

_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # it has no user namespace in a container; the pages are ours
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--force-prefers-reduced-motion",  # a click would meet a page that still scrolls
    "--window-size=1280,1000",
)


def find_program(name: str) -> str:
    """Return the path of `chromium` or `chromedriver`."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(
            f"no {name}; run .ci/services.sh, or: apt-get install chromium chromium-driver",
            pytrace=False,
        )
    return found


class Browser:
    """One window of a running browser."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def open(self, url: str) -> None:
        self._post("url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what the script returns; `return` in it, `arguments` and `await` work."""
        wrapped = f"return (async () => {{ {script} }}).apply(null, arguments)"
        wrapped = wrapped.replace("async () =>", "async function () ", 1)
        return self._post("execute/sync", {"script": wrapped, "args": list(arguments)})

    def find(self, selector: str) -> str:
        body = {"using": "css selector", "value": selector}
        return self._post("element", body)[_ELEMENT]

    def click(self, selector: str) -> None:
        self._post(f"element/{self.find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Type into an element, or give a file input the paths of files, a line each."""
        self._post(f"element/{self.find(selector)}/value", {"text": text})

    def press(self, text: str) -> None:
        """Press keys, one after the other; whatever has the focus gets them."""
        keys = [{"type": kind, "value": sign} for sign in text for kind in ("keyDown", "keyUp")]
        self._post("actions", {"actions": [{"type": "key", "id": "keyboard", "actions": keys}]})

    def label_of(self, selector: str) -> str:
        """Return the name that assistive technology reads out."""
        return self._get(f"element/{self.find(selector)}/computedlabel")

    def text_of(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0])?.textContent ?? ''", selector)

    def texts_of(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        return self.run(script, selector)

    def wait_for(self, is_true: Callable[[], Any], within_seconds: float = WAIT_SECONDS) -> Any:
        """Return the first true value of `is_true`."""
        deadline = time.monotonic() + within_seconds
        while not (found := is_true()):
            if time.monotonic() > deadline:
                page = self.run("return document.body.innerText")
                raise AssertionError(f"the page never came to the awaited state:\n{page}")
            time.sleep(_POLL_SECONDS)
        return found

    def wait_for_text(self, selector: str, text: str) -> None:
        self.wait_for(lambda: text in self.text_of(selector))

    def drop_files(self, selector: str, accepting: str, *paths: Path) -> None:
        """Drag files or folders from the desktop onto an element, and let go as soon as it is ready for them.

        Args:
            selector: the element.
            accepting: matches an element while the page would take the drop.
            paths: what is dragged.
        """
        script = """
            const box = document.querySelector(arguments[0]);
            const frame = () => new Promise(requestAnimationFrame);
            box.scrollIntoView({behavior: "instant", block: "center"});
            await frame();
            await frame();
            const place = box.getBoundingClientRect();
            return {x: place.x + place.width / 2, y: place.y + 5};
        """
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        place = self.run(script, selector)

        def drag(kind: str) -> None:
            self.command("Input.dispatchDragEvent", type=kind, data=data, **place)

        def is_accepted() -> bool:
            drag("dragOver")
            return self.run("return document.querySelector(arguments[0]) !== null", accepting)

        drag("dragEnter")
        self.wait_for(is_accepted)
        drag("dragOver")
        drag("drop")

    def set_media(self, **features: str) -> None:
        """Set what the page is told of its user's preferences: `prefers_color_scheme="dark"`."""
        given = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self.command("Emulation.setEmulatedMedia", features=given)

    def set_size(self, width: int, height: int) -> None:
        """Set the size of the page's window, in its pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **size)

    def screenshot(self) -> bytes:
        """Return the window as PNG."""
        return base64.b64decode(self._get("screenshot"))

    def complaints(self) -> list[str]:
        """Return what pages wrote to the browser's log since the last call: exceptions, and what their policy forbids.

        It also notes every answer of 400 and up, which is what some tests are about; those are left out.
        """
        entries = self._post("se/log", {"type": "browser"})
        return [
            e["message"]
            for e in entries
            if "the server responded with a status" not in e["message"]
        ]

    def command(self, name: str, **parameters: Any) -> Any:
        """Send a command of Chromium's own protocol."""
        return self._post("goog/cdp/execute", {"cmd": name, "params": parameters})

    def _get(self, path: str) -> Any:
        return _value(self._client.get(path))

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return _value(self._client.post(path, json=body))


def _value(answer: httpx.Response) -> Any:
    value = answer.json()["value"]
    assert answer.status_code == 200, value
    return value


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Run a browser with a profile of its own."""
    port = free_port()
    command = [find_program("chromedriver"), f"--port={port}", "--log-level=SEVERE"]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", "--", *command], stdout=subprocess.DEVNULL
    )
    with tempfile.TemporaryDirectory(
        prefix="shadow-browser-", ignore_cleanup_errors=True
    ) as folder:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                _wait(client, process)
                session = _value(client.post("session", json=_capabilities(folder)))["sessionId"]
                client.base_url = f"http://127.0.0.1:{port}/session/{session}"
                yield Browser(client)
                client.delete("")
        finally:
            process.terminate()
            process.wait(30)


def _capabilities(folder: str) -> dict[str, Any]:
    options = {
        "binary": find_program("chromium"),
        "args": [*_FLAGS, f"--user-data-dir={folder}"],
    }
    wanted = {
        "browserName": "chrome",
        "goog:chromeOptions": options,
        "goog:loggingPrefs": {"browser": "ALL"},
    }
    return {"capabilities": {"alwaysMatch": wanted}}


def _wait(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if client.get("status").json()["value"]["ready"]:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail("chromedriver did not start", pytrace=False)
        time.sleep(_POLL_SECONDS)
