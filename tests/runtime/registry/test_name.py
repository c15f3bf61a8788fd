"""Names, and how a request spells one."""

import pytest

from shadow_runtime.registry import is_adapter_name, is_tenant_name, parse_adapter
from shadow_runtime.types import AdapterName


@pytest.mark.parametrize("text", ["math", "a", "A.b-c_9", "0", "x" * 128])
def test_adapter_names_that_are_taken(text):
    assert is_adapter_name(text)


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "-x", "a/b", "a:b", "a@1", "a b", "a\n", "a\0", "é", "x" * 129, "../x", "a\\b"],
)
def test_adapter_names_that_are_refused(text):
    assert not is_adapter_name(text)
    assert parse_adapter(text + "@", "default") is None


@pytest.mark.parametrize("text", ["acme", "a", "0-9", "x" * 63])
def test_tenants_that_are_taken(text):
    assert is_tenant_name(text)


@pytest.mark.parametrize("text", ["", "Acme", "-a", "a_b", "a.b", "a/b", "a\n", "é", "x" * 64])
def test_tenants_that_are_refused(text):
    assert not is_tenant_name(text)


@pytest.mark.parametrize(
    ("text", "name", "version"),
    [
        ("support", AdapterName("home", "support"), None),
        ("support@3", AdapterName("home", "support"), 3),
        ("acme/support", AdapterName("acme", "support"), None),
        ("acme/support@12", AdapterName("acme", "support"), 12),
    ],
)
def test_spellings_of_a_request(text, name, version):
    assert parse_adapter(text, "home") == (name, version)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@1",
        "a@",
        "a@0",
        "a@-1",
        "a@01",
        "a@1 ",
        "a@1@2",
        "a/b/c",
        "/a",
        "a/",
        "A/b",
        "a@1234567890",
    ],
)
def test_spellings_that_mean_nothing(text):
    assert parse_adapter(text, "home") is None
