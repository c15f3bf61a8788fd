"""Settings of the HTTP server; the engine has its own.

Runs in: API process.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Fixed at start.

    Attributes:
        adapter_roots: real paths of the directories that adapters may be loaded from over HTTP;
            empty refuses every such load.
        max_body_bytes: longest request body. Default 16 MiB, some two million token ids.
        unload_wait_seconds: how long an unload waits for the adapter's last request before it
            answers 202. Range 0 or more.
        max_adapter_labels: adapters that get latency series of their own; the others share one.
    """

    adapter_roots: tuple[str, ...] = ()
    max_body_bytes: int = 16 << 20
    unload_wait_seconds: float = 10.0
    max_adapter_labels: int = 32
