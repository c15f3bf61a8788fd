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
        hub_allow: patterns of the Hugging Face repositories that adapters may be loaded from; empty
            refuses every such load.
        hub_endpoint: where the hub is; None for huggingface.co.
        max_body_bytes: longest JSON body. Default 16 MiB, some two million token ids.
        max_body_seconds: how long a JSON body may take to arrive; until then the request holds a place in the queue.
        max_upload_bytes: longest upload of an adapter. Default 4 GiB.
        unload_wait_seconds: how long an unload waits for the adapter's last request before it
            answers 202. Range 0 or more.
        max_adapter_labels: pairs of adapter and tenant with series of their own; the others share some.
        max_running_requests: requests that the engine runs at once. Range 1 or more.
        max_queued_requests: requests beyond those that may wait; None derives it, see
            `tenancy.admission.default_max_queued`. Range 0 or more.
    """

    adapter_roots: tuple[str, ...] = ()
    hub_allow: tuple[str, ...] = ()
    hub_endpoint: str | None = None
    max_body_bytes: int = 16 << 20
    max_body_seconds: float = 60.0
    max_upload_bytes: int = 4 << 30
    unload_wait_seconds: float = 10.0
    max_adapter_labels: int = 100
    max_running_requests: int = 256
    max_queued_requests: int | None = None
