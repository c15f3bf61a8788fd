"""The table of adapters in a real browser: what is loaded, and how it is doing."""

import httpx
import pytest

from console_server import ConsoleServer
from console_view import adapter_row, choose_adapter
from shadow_server.engine import RequestOrigin

pytestmark = pytest.mark.slow


def test_adapters_have_state_version_and_digest(browser, server):
    digest = server.publish("support")
    server.publish("legal")

    browser.wait_for(lambda: adapter_row(browser, "support") and adapter_row(browser, "legal"))

    name, version, state, level, shown, running = adapter_row(browser, "support")[:6]
    listed = {card["id"]: card for card in httpx.get(f"{server.url}/v1/adapters").json()["data"]}
    assert (name, version, state, running) == ("support", "1", "RESIDENT", "0")
    assert level == listed["support"]["level"]
    assert shown == digest
    browser.wait_for_text("#status", "2 adapters")


def test_rows_come_and_go_with_the_adapters(browser, server):
    server.publish("support")
    browser.wait_for(lambda: adapter_row(browser, "support"))

    assert httpx.delete(f"{server.url}/v1/adapters/support").status_code == 200

    browser.wait_for(lambda: adapter_row(browser, "support") is None)
    assert browser.run("return document.getElementById('no-adapters').hidden") is False


def test_numbers_move_while_requests_are_answered(browser, server):
    server.publish("support")
    browser.wait_for(lambda: adapter_row(browser, "support"))
    server.complete(3, adapter="support")

    browser.wait_for(lambda: adapter_row(browser, "support")[6] == "3")
    # The fake engine's first tokens come after 20 ms: the bucket between 10 and 20 ms, in its middle.
    browser.wait_for(lambda: adapter_row(browser, "support")[7] == "15.0 ms")
    server.complete(2, adapter="support")
    browser.wait_for(lambda: adapter_row(browser, "support")[6] == "5")

    # Of what is new only: over all five the median would be below 20 ms.
    slow = RequestOrigin("support", "default")
    server.call(lambda: server.engine._sink.observe_first_token(slow, 0.3, 0.0))
    browser.wait_for(lambda: adapter_row(browser, "support")[7] == "375.0 ms")

    labels = "return [...document.querySelectorAll('.ttft svg')].map(e => e.ariaLabel)"
    assert "support, time to first token: last 375.0 ms, highest 375.0 ms" in browser.run(labels)


def test_focus_stays_while_the_table_is_refreshed(browser, server):
    server.publish("support")
    choose_adapter(browser, 1, "support")
    browser.wait_for(lambda: adapter_row(browser, "base model"))
    browser.run("window.kept = [...document.querySelectorAll('#adapter-rows tr')]")
    browser.run("document.querySelector('.ask-adapter').focus()")
    server.publish("another")
    browser.wait_for(lambda: adapter_row(browser, "another"))

    script = """
        const rows = [...document.querySelectorAll("#adapter-rows tr")];
        const active = document.activeElement;
        const [base, support] = window.kept;
        return [rows[0] === base, rows[2] === support, active.className, active.value];
    """
    assert browser.run(script) == [True, True, "ask-adapter", "support"]


def test_server_that_went_is_told_until_it_is_back(browser, tmp_path):
    with ConsoleServer(tmp_path / "state") as server:
        browser.open(f"{server.url}/console")
        browser.wait_for_text("#status", "0 adapters")
        port = server.port
    browser.wait_for_text("#alert", "The server does not answer")
    with ConsoleServer(tmp_path / "state", port=port) as server:
        server.publish("support")
        browser.wait_for(lambda: adapter_row(browser, "support"))
        assert browser.run("return document.getElementById('alert').hidden") is True
        browser.open("about:blank")
    browser.complaints()  # of connections that were refused
