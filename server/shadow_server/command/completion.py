"""Names of adapters for the shell's completion, asked of the server while the user types.

Runs in: the command's own process.
"""

from __future__ import annotations

import os

from shadow_client import Client, RetryPolicy, ShadowClientError
from shadow_client.client import KEY_VARIABLE, URL_VARIABLE
from shadow_client.session import DEFAULT_URL

_WAIT_SECONDS = 1.0


def complete_adapter(incomplete: str) -> list[str]:
    """Return the adapters that begin with `incomplete`; none when the server does not answer within a second."""
    url = os.environ.get(URL_VARIABLE) or DEFAULT_URL
    key = os.environ.get(KEY_VARIABLE, "").strip() or None
    never = RetryPolicy(max_retries=0)
    try:
        with Client(url, key, timeout_seconds=_WAIT_SECONDS, retry=never) as client:
            names = [adapter.name for adapter in client.adapters.list()]
    except (
        ShadowClientError,
        ValueError,
    ):  # nobody there, or no address and no key in the environment
        return []
    return [name for name in names if name.startswith(incomplete)]
