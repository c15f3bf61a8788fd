"""Keys in a real browser: what a user sees and an admin, and where a key is kept."""

import pytest

from console_server import ConsoleServer
from console_view import adapter_row, tenant_row, use_key
from fake_tenants import write_tenant
from shadow_server.tenancy.quota import TenantQuotas

pytestmark = pytest.mark.slow


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "tenants.json"
    quotas = TenantQuotas(requests_per_minute=2)
    return {
        "path": path,
        "acme": write_tenant(path, "acme", quotas=quotas),
        "zeta": write_tenant(path, "zeta"),
        "ops": write_tenant(path, "ops", "admin"),
    }


@pytest.fixture
def guarded(tmp_path, browser, keys):
    with ConsoleServer(tmp_path / "guarded", keys["path"]) as server:
        server.publish("support", keys["acme"])
        server.publish("secret", keys["zeta"])
        browser.open(f"{server.url}/console")
        yield server
        browser.click("#forget")
        browser.open("about:blank")
    assert browser.complaints() == []


def test_user_sees_what_is_its_own_and_what_it_may_not_see(browser, guarded, keys):
    browser.wait_for_text("#alert", "This server asks for a key.")
    use_key(browser, "wrong")
    browser.wait_for_text("#alert", "The server does not know this key.")
    guarded.asked.clear()
    use_key(browser, keys["acme"])

    browser.wait_for(lambda: adapter_row(browser, "support"))
    assert adapter_row(browser, "secret") is adapter_row(browser, "zeta/secret") is None
    browser.wait_for_text("#latency-note", "need an admin's key")
    browser.wait_for_text("#tenants-note", "need an admin's key")
    browser.type("#prompt", "hi")
    browser.click("#ask")
    browser.wait_for_text("#tenant-rows .quotas", "1 of 2 requests per minute")
    assert browser.texts_of("#tenant-rows th") == ["acme"]
    num_looks = [path.startswith("/metrics") for path in guarded.asked].count(True)
    assert num_looks == 1  # refused once, never asked again


def test_admin_sees_all_tenants_and_their_quotas(browser, guarded, keys):
    use_key(browser, keys["ops"])
    browser.wait_for(
        lambda: adapter_row(browser, "acme/support") and adapter_row(browser, "zeta/secret")
    )
    guarded.complete(key=keys["acme"], adapter="support")

    browser.wait_for(lambda: tenant_row(browser, "acme")[6] == "1 of 2 requests per minute")
    assert tenant_row(browser, "acme")[1:5] == ["1", "0.0 MB", "1", "0"]
    assert tenant_row(browser, "zeta")[6] == ""
    browser.wait_for(lambda: adapter_row(browser, "acme/support")[6] == "1")
    assert browser.run("return document.querySelector('#tenant-rows meter').ariaLabel") == (
        "requests per minute"
    )


def test_key_is_in_no_address_and_goes_when_forgotten(browser, guarded, keys):
    use_key(browser, keys["acme"])
    browser.wait_for(lambda: adapter_row(browser, "support"))
    stored = browser.run(
        "return [Object.values(sessionStorage), localStorage.length, location.href]"
    )
    assert stored == [[keys["acme"]], 0, f"{guarded.url}/console"]
    assert browser.run("return document.cookie") == ""
    assert not any(keys["acme"] in address for address in guarded.asked)
    assert keys["acme"] not in browser.run("return document.documentElement.outerHTML")
    assert browser.run("return document.getElementById('key').value") == ""

    browser.click("#forget")

    browser.wait_for_text("#alert", "This server asks for a key.")
    assert browser.run("return sessionStorage.length") == 0
    assert adapter_row(browser, "support") is None
