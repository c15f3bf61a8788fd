"""Whether a server may listen where it was told to: without keys, only this machine reaches it.

Runs in: API process.
"""

from __future__ import annotations

import ipaddress

from shadow_server.engine import runtime_errors

LOOPBACK = "127.0.0.1"


def choose_host(host: str | None, *, has_tenants: bool, is_allowed: bool) -> str | None:
    """Return where to listen: `host`, or the loopback address when none was named and there are no keys.

    Raises:
        ConfigError: see `check_exposure`.
    """
    chosen = host if host or has_tenants or is_allowed else LOOPBACK
    check_exposure(chosen, has_tenants=has_tenants, is_allowed=is_allowed)
    return chosen


def check_exposure(host: str | None, *, has_tenants: bool, is_allowed: bool) -> None:
    """Refuse to serve others than this machine without keys.

    Args:
        host: where the server would listen; None or empty is every interface.
        has_tenants: every request needs a key.
        is_allowed: the operator said that no key is needed (a gateway in front asks for one, say).

    Raises:
        ConfigError: everyone who reaches the host would be an admin.
    """
    if has_tenants or is_allowed or is_loopback(host):
        return
    raise runtime_errors.ConfigError(
        f"without keys the server listens on this machine only, not on {host or 'every interface'}: "
        "give --tenants-file, or --allow-unauthenticated to let everyone in"
    )


def is_loopback(host: str | None) -> bool:
    """Return whether only this machine reaches `host`; names other than localhost are not looked up."""
    if not host:
        return False
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
