"""A server with tenants for the tests of their isolation; it starts once a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tenant_server import TenantServer, tenant_server

MAX_RUNNING, MAX_QUEUED = 32, 32


@pytest.fixture(scope="session")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TenantServer]:
    options = ("--max-num-seqs", f"{MAX_RUNNING}", "--max-queued-requests", f"{MAX_QUEUED}")
    with tenant_server(tmp_path_factory.mktemp("tenants"), *options) as running:
        yield running
