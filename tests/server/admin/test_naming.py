"""Whose adapter a name is, and how it is shown."""

import pytest

from shadow_runtime.errors import AdapterNotFoundError
from shadow_runtime.types import AdapterName
from shadow_server.admin.naming import name_to_publish, reach, reach_name, shown_name
from shadow_server.errors import ApiError
from shadow_server.tenancy.identity import ANONYMOUS, Identity

USER = Identity(tenant="acme", role="user")
ADMIN = Identity(tenant="acme", role="admin")


@pytest.mark.parametrize(
    ("text", "identity", "expected"),
    [
        ("math", USER, (AdapterName("acme", "math"), None)),
        ("math@3", USER, (AdapterName("acme", "math"), 3)),
        ("acme/math@3", USER, (AdapterName("acme", "math"), 3)),
        ("beta/math", ADMIN, (AdapterName("beta", "math"), None)),
        ("math", ANONYMOUS, (AdapterName("default", "math"), None)),
    ],
)
def test_reach(text, identity, expected):
    assert reach(text, identity) == expected


@pytest.mark.parametrize("text", ["beta/math", "", "a/b/c", "-a", "math@0", "math@", "é"])
def test_what_a_user_cannot_reach_is_not_found(text):
    with pytest.raises(AdapterNotFoundError, match=r"^No adapter '"):
        reach(text, USER)
    with pytest.raises(AdapterNotFoundError, match=r"^No adapter '"):
        reach_name(text, USER)


def test_a_version_is_not_a_name():
    with pytest.raises(AdapterNotFoundError):
        reach_name("math@1", USER)


def test_publishing():
    assert name_to_publish("math", USER, ["base"], "name") == AdapterName("acme", "math")
    assert name_to_publish("beta/math", ADMIN, ["base"], "name") == AdapterName("beta", "math")
    with pytest.raises(AdapterNotFoundError):
        name_to_publish("beta/math", USER, ["base"], "name")
    for text in ("base", "acme/base", "math@1", "versions", "acme/versions", "a b"):
        with pytest.raises(ApiError) as caught:
            name_to_publish(text, USER, ["base"], "name")
        assert (caught.value.rule.code, caught.value.param) == ("adapter_name_invalid", "name")
    with pytest.raises(ApiError):
        name_to_publish("qwen/q3", ADMIN, ["qwen/q3"], "name")


def test_shown_names():
    name = AdapterName("acme", "math")
    assert shown_name(name, USER) == "math"
    assert shown_name(name, Identity(tenant="ops")) == "acme/math"
    assert shown_name(AdapterName("default", "math"), ANONYMOUS) == "math"
    assert shown_name(AdapterName("default", "math"), USER) == "default/math"
