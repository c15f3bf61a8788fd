"""What a browser shows of the console."""

from __future__ import annotations

from browser import Browser

_ROW = """
    const row = [...document.querySelectorAll(`#${arguments[0]} tr`)]
        .find((row) => row.firstElementChild.textContent === arguments[1]);
    return row ? [...row.cells].map((cell) => cell.textContent) : null;
"""


def adapter_row(browser: Browser, name: str) -> list[str] | None:
    """Return the cells of an adapter's row: name, version, state, level, digest, running, requests, TTFT, ITL."""
    return browser.run(_ROW, "adapter-rows", name)


def tenant_row(browser: Browser, name: str) -> list[str] | None:
    """Return the cells of a tenant's row: name, adapters, stored, requests, refused, tokens, quotas."""
    return browser.run(_ROW, "tenant-rows", name)


def choose_adapter(browser: Browser, place: int, name: str) -> None:
    """Choose an adapter of the playground as soon as it is offered; `place` is 1, 2 or 3."""
    selector = f".inline:nth-of-type({place + 1}) .ask-adapter"
    browser.wait_for(lambda: name in browser.texts_of(f"{selector} option"))
    browser.type(selector, name)
    chosen = f"return document.querySelector('{selector}').value"
    browser.wait_for(lambda: browser.run(chosen) == name)


def use_key(browser: Browser, key: str) -> None:
    """Type a key in and press Enter."""
    browser.type("#key", f"{key}\n")
