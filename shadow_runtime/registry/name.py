"""What adapters and tenants may be called, and how a request spells one.

Runs in: API process.
"""

from __future__ import annotations

import re

from shadow_runtime.types import AdapterName

# Neither ':' (`base:adapter` in a request's model) nor '@' (versions) nor '/' (tenants) can appear, so a
# name is safe in a URL segment, a header and a metric label, and never equals those spellings.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


def is_adapter_name(text: str) -> bool:
    """Return whether `text` is 1 to 128 of `A-Za-z0-9._-`, the first a letter or digit."""
    return _NAME.fullmatch(text) is not None


def is_tenant_name(text: str) -> bool:
    """Return whether `text` is 1 to 63 of `a-z0-9-`, the first a letter or digit."""
    return _TENANT.fullmatch(text) is not None


def parse_adapter(text: str, home: str) -> tuple[AdapterName, int | None] | None:
    """Return the name and version that a request's spelling means, None when it cannot be one.

    Args:
        text: `support`, `support@3`, `acme/support` or `acme/support@3`.
        home: tenant of a short name.
    """
    spelled, at, version = text.partition("@")
    if at and _VERSION.fullmatch(version) is None:
        return None
    tenant, slash, name = spelled.rpartition("/")
    if not slash:
        tenant = home
    if not is_tenant_name(tenant) or not is_adapter_name(name):
        return None
    return AdapterName(tenant, name), int(version) if at else None
