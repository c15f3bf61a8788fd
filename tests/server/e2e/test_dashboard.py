"""A real Prometheus that scrapes a real server answers the dashboards' and alerts' queries."""

import time

import pytest

from prometheus import running_prometheus
from promql import alert_queries, dashboard_queries

pytestmark = pytest.mark.engine

# There is nothing to see where nothing failed, waited, was evicted, has a quota, or was loaded since the start.
QUIET = (
    "fleet: Failed",
    "fleet: Loads",
    "fleet: Time to load",
    "adapter: Loads of all adapters",
    "adapter: Waiting for a load",
    "adapter: Evictions of all adapters",
    "tenant: Refusals by reason",
    "tenant: Refused",
    "tenant: Quota in use",
)
SECONDS = 60


def test_panels_show_a_servers_traffic(server):
    with running_prometheus(server.process.url.removeprefix("http://")) as prometheus:
        waiting = [q for q in dashboard_queries() if q.place not in QUIET]
        assert len(waiting) > 40
        deadline = time.monotonic() + SECONDS
        while waiting and time.monotonic() < deadline:
            # A rate needs two scrapes with traffic between them.
            for adapter in ("shout", "french", None):
                body = {"prompt": "the old fox", "adapter": adapter, "max_tokens": 8}
                server.client.post("/v1/completions", json=body).raise_for_status()
            time.sleep(1)
            waiting = [q for q in waiting if not prometheus.query(q.expression)]
        assert waiting == []
        for query in dashboard_queries():
            prometheus.query(query.expression)


def test_alerts_of_a_healthy_server_are_silent(server):
    with running_prometheus(server.process.url.removeprefix("http://")) as prometheus:
        prometheus.wait_for("shadow_build_info")

        for query in alert_queries():
            assert prometheus.query(query.expression) == [], query.place
