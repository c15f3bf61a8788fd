"""The playground in a real browser: streams side by side, stopped and left."""

import httpx
import pytest

from browser import ENTER, TAB
from console_view import choose_adapter

pytestmark = pytest.mark.slow


def test_two_streams_stand_side_by_side_and_come_word_by_word(browser, server):
    digest = server.publish("support")
    server.hold()
    choose_adapter(browser, 1, "support")
    browser.type("#prompt", "the old fox")
    browser.click("#ask")

    browser.wait_for(lambda: len("".join(browser.texts_of(".pane pre"))) > 10)
    assert browser.texts_of(".pane pre") == ["[base] ", f"[support:{digest[-4:]}] "]
    assert browser.texts_of(".pane h3") == ["base model", "support version 1"]
    tops = browser.run("return [...document.querySelectorAll('.pane')].map(p => p.offsetTop)")
    assert tops[0] == tops[1]
    server.release()

    browser.wait_for(lambda: browser.texts_of(".outcome") == ["Done.", "Done."])
    assert browser.texts_of(".pane pre") == [
        "[base] the old fox ",
        f"[support:{digest[-4:]}] the old fox ",
    ]
    assert all("4 pieces" in figures for figures in browser.texts_of(".figures"))


@pytest.mark.parametrize("way", ["stop", "leave", "forget"])
def test_streams_are_aborted(browser, server, way):
    server.publish("support")
    server.hold()
    choose_adapter(browser, 1, "support")
    browser.type("#prompt", "the old fox")
    browser.click("#ask")
    browser.wait_for(lambda: len(browser.texts_of(".pane pre")) == 2)
    browser.wait_for(lambda: all(browser.texts_of(".pane pre")))
    assert server.engine.num_aborted == 0

    if way == "leave":
        browser.open("about:blank")
    else:
        browser.click(f"#{way}")

    browser.wait_for(lambda: server.engine.num_aborted == 2)
    if way == "stop":
        browser.wait_for(lambda: browser.texts_of(".outcome") == ["Stopped.", "Stopped."])


def test_refusal_and_failure_in_a_stream_are_told_in_their_pane(browser, server):
    server.publish("support")
    choose_adapter(browser, 1, "support")
    assert httpx.delete(f"{server.url}/v1/adapters/support").status_code == 200
    browser.type("#prompt", "this will fail")
    browser.click("#ask")

    browser.wait_for(lambda: all(browser.texts_of(".outcome")) and browser.texts_of(".outcome"))
    base, adapter = browser.texts_of(".outcome")
    assert base == "boom"
    assert "support" in adapter


def test_adapter_is_asked_and_stopped_by_keyboard_alone(browser, server):
    server.publish("support")
    browser.wait_for(lambda: "support" in browser.texts_of(".ask-adapter option"))
    server.hold()
    browser.run("document.getElementById('prompt').focus()")
    browser.press("hi")
    browser.press(TAB)
    browser.press(" ")  # the base model is not asked
    browser.press(TAB)
    browser.press("support")
    for _ in range(5):
        browser.press(TAB)
    browser.press(ENTER)
    browser.wait_for(lambda: browser.texts_of(".pane h3") == ["support version 1"])
    browser.press(TAB)
    browser.press(ENTER)

    browser.wait_for(lambda: browser.texts_of(".outcome") == ["Stopped."])
