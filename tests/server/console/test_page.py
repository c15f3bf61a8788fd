"""The page in a real browser: by keyboard, by ear, in the dark, and with names that are markup."""

import httpx
import pytest

from browser import TAB
from console_view import adapter_row, choose_adapter

pytestmark = pytest.mark.slow

HOSTILE = '<img src=x onerror="document.title=1"><b>bold</b>'


def test_markup_of_others_stays_text(browser, server):
    server.publish("support")
    card = httpx.get(f"{server.url}/v1/adapters").json()["data"][0]
    server.cards = [card | {"id": HOSTILE, "name": HOSTILE, "state": "FAILED", "failure": HOSTILE}]
    browser.wait_for(lambda: adapter_row(browser, HOSTILE))
    assert adapter_row(browser, HOSTILE)[2] == f"FAILED: {HOSTILE}"
    choose_adapter(browser, 1, HOSTILE)
    browser.type("#prompt", HOSTILE)
    browser.click("#ask")

    browser.wait_for(lambda: all(browser.texts_of(".outcome")) and browser.texts_of(".outcome"))
    assert browser.texts_of(".pane pre")[0] == f"[base] {HOSTILE} "
    assert browser.texts_of(".pane h3")[1] == HOSTILE
    assert browser.run("return document.querySelectorAll('img, b').length") == 0
    assert browser.run("return document.title") == "ShadowServe console"


def test_browser_itself_refuses_markup(browser, server):
    script = """
        try { document.body.innerHTML = arguments[0]; } catch (error) { return error.name; }
        return "parsed";
    """
    assert browser.run(script, HOSTILE) == "TypeError"
    (complaint,) = browser.complaints()
    assert "TrustedHTML" in complaint


ACTIVE = """
    const active = document.activeElement;
    if (active === document.body) return ["the end", true];
    return [active.id || active.className || active.textContent, active.matches(":focus-visible")];
"""


def test_everything_is_reached_by_keyboard_in_the_order_of_the_page(browser, server, write_adapter):
    server.publish("support")
    browser.wait_for(lambda: adapter_row(browser, "support"))
    order = []
    browser.run("document.activeElement.blur()")
    for _ in range(40):
        browser.press(TAB)
        name, is_visible = browser.run(ACTIVE)
        if name in order and name not in ("ask-adapter", "scroll"):
            break
        assert is_visible, name
        order.append(name)
    wanted = ["skip", "Adapters", "Playground", "Load", "Tenants", "key", "forget", "prompt"]
    wanted += [
        "ask-base",
        "max-tokens",
        "temperature",
        "ask",
        "load-name",
        "load-files",
        "load-start",
    ]
    assert [name for name in order if name in wanted] == wanted
    assert order.count("ask-adapter") == 3


def test_fields_have_names(browser, server):
    ids = browser.run(
        "return [...document.querySelectorAll('input, textarea, progress, button')].map(e => e.id).filter(Boolean)"
    )
    assert len(ids) > 12
    browser.run("document.getElementById('load-progress').hidden = false")
    unnamed = [i for i in ids if not browser.label_of(f"#{i}").strip()]
    assert unnamed == []
    assert browser.label_of("#key") == "API key"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_and_motion_follow_the_users_preferences(browser, server, scheme):
    browser.set_media(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    ground = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 21, 27)"}[scheme]
    still = browser.run(
        "return getComputedStyle(document.getElementById('drop')).transitionDuration"
    )
    assert still == "0s"
    browser.set_media(prefers_reduced_motion="no-preference")
    assert (
        browser.run("return getComputedStyle(document.getElementById('drop')).transitionDuration")
        != "0s"
    )
    browser.set_media()
