"""Where a server without keys may listen."""

import pytest

from shadow_server.engine import runtime_errors
from shadow_server.tenancy.exposure import check_exposure, choose_host, is_loopback

LOCAL = [
    "127.0.0.1",
    "127.1.2.3",
    "::1",
    "[::1]",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "::ffff:127.0.0.1",
]
OPEN = [None, "", "0.0.0.0", "::", "10.0.0.1", "192.168.1.4", "example.org", "localhost.evil.org"]
OPEN += ["127.0.0.1.evil.org", "::ffff:10.0.0.1", "127.1", "0", "2130706433", "fe80::1%eth0"]


@pytest.mark.parametrize("host", LOCAL)
def test_this_machine_only(host):
    assert is_loopback(host)
    check_exposure(host, has_tenants=False, is_allowed=False)
    assert choose_host(host, has_tenants=False, is_allowed=False) == host


@pytest.mark.parametrize("host", OPEN)
def test_everyone_else_needs_keys_or_a_permission(host):
    assert not is_loopback(host)
    with pytest.raises(runtime_errors.ConfigError, match="--tenants-file") as caught:
        check_exposure(host, has_tenants=False, is_allowed=False)
    assert "\n" not in str(caught.value)
    check_exposure(host, has_tenants=True, is_allowed=False)
    check_exposure(host, has_tenants=False, is_allowed=True)


def test_without_a_host_a_server_without_keys_is_local():
    assert choose_host(None, has_tenants=False, is_allowed=False) == "127.0.0.1"
    assert choose_host("", has_tenants=False, is_allowed=False) == "127.0.0.1"
    assert choose_host(None, has_tenants=True, is_allowed=False) is None
    assert choose_host(None, has_tenants=False, is_allowed=True) is None
    with pytest.raises(runtime_errors.ConfigError):
        choose_host("0.0.0.0", has_tenants=False, is_allowed=False)
