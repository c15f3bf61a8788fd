"""Makes docs/console.png: the console over the fake engine, in light and in dark. Run by hand, from the repository:

    PYTHONPATH=tests/support .venv/bin/python tests/support/console_picture.py

The adapters' names and latencies are made up; everything else is what a browser shows.
"""

from __future__ import annotations

import io
import random
import tempfile
from pathlib import Path

from PIL import Image

from browser import Browser, running_browser
from console_server import ConsoleServer
from console_view import adapter_row, choose_adapter, use_key
from fake_tenants import write_tenant
from shadow_server.engine import RequestOrigin
from shadow_server.tenancy.quota import TenantQuotas
from source_tree import ROOT

PICTURE = ROOT / "docs/console.png"
SIZE = (1280, 1330)
WIDTH = 1600
NUM_LOOKS = 24
MEDIANS = {None: 0.021, "acme/support": 0.024, "acme/french": 0.03, "zeta/legal": 0.045}
"""Seconds to the first token, by adapter."""


def make_picture() -> None:
    """Write the picture."""
    with tempfile.TemporaryDirectory() as name, running_browser() as browser:
        folder = Path(name)
        tenants = folder / "tenants.json"
        keys = {
            "acme": write_tenant(tenants, "acme", quotas=TenantQuotas(requests_per_minute=60)),
            "zeta": write_tenant(tenants, "zeta", quotas=TenantQuotas(tokens_per_minute=4000)),
            "ops": write_tenant(tenants, "ops", "admin"),
        }
        with ConsoleServer(folder / "state", tenants) as server:
            browser.open(f"{server.url}/console")
            _fill(browser, server, keys)
            shots = [_shoot(browser, scheme) for scheme in ("light", "dark")]
            browser.open("about:blank")
    _join(shots).save(PICTURE, optimize=True)


def _fill(browser: Browser, server: ConsoleServer, keys: dict[str, str]) -> None:
    for name in ("support", "french"):
        server.publish(name, keys["acme"])
    server.publish("legal", keys["zeta"])
    server.complete(23, keys["acme"], adapter="support")
    server.complete(5, keys["acme"], adapter="french")
    server.complete(9, keys["zeta"], adapter="legal")
    use_key(browser, keys["ops"])
    browser.wait_for(lambda: adapter_row(browser, "acme/support"))
    choose_adapter(browser, 1, "acme/support")
    choose_adapter(browser, 2, "zeta/legal")
    browser.type("#prompt", "the old fox sees a small dog")
    _measure(browser, server, random.Random(3))
    server.hold()
    browser.click("#ask")
    browser.wait_for(lambda: all(browser.texts_of(".pane pre")))
    server.release()
    browser.wait_for(lambda: browser.texts_of(".outcome") == ["Done."] * 3)


def _measure(browser: Browser, server: ConsoleServer, rng: random.Random) -> None:
    """Let latencies come and go, a little of them between any two looks of the page."""
    sink = server.engine._sink
    for _ in range(NUM_LOOKS):
        for adapter, median in MEDIANS.items():
            origin = RequestOrigin(adapter, "acme" if adapter is None else adapter.split("/")[0])
            for _ in range(rng.randrange(1, 6)):
                sink.observe_first_token(origin, median * rng.lognormvariate(0, 0.4), 0.0)
                for _ in range(20):
                    sink.observe_inter_token(origin, 0.006 * rng.lognormvariate(0, 0.3))
        num_looks = server.asked.count("/metrics?")
        browser.wait_for(lambda seen=num_looks: server.asked.count("/metrics?") > seen)


def _shoot(browser: Browser, scheme: str) -> Image.Image:
    browser.set_media(prefers_color_scheme=scheme)
    browser.set_size(*SIZE)
    browser.run("document.activeElement.blur(); scrollTo({top: 0, behavior: 'instant'})")
    return Image.open(io.BytesIO(browser.screenshot())).convert("RGB")


def _join(shots: list[Image.Image]) -> Image.Image:
    width, height = shots[0].size
    whole = Image.new("RGB", (width * len(shots), height))
    for number, shot in enumerate(shots):
        whole.paste(shot, (number * width, 0))
    scaled = whole.resize((WIDTH, height * WIDTH // whole.width), Image.Resampling.LANCZOS)
    return scaled.quantize(256, Image.Quantize.MAXCOVERAGE)


if __name__ == "__main__":
    make_picture()
