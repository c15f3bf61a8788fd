"""docs/metrics.md is what the code makes of it, and the table is what /metrics shows."""

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

import shadow_server
from shadow_server.observability.document import render_metrics
from shadow_server.observability.series import ALL_SERIES

DOCUMENT = Path(shadow_server.__file__).parents[2] / "docs" / "metrics.md"


def test_the_document_is_current():
    assert DOCUMENT.read_text() == render_metrics(ALL_SERIES)


async def test_every_series_of_the_table_is_shown_with_its_type_labels_and_meaning(server):
    await server.load("math")
    await server.load("math", "other bytes")
    await server.complete(adapter="math")
    await server.complete("hi", adapter="nobody")
    text = (await server.client.get("/metrics")).text
    shown = {
        f"{f.name}_total" if f.type == "counter" else f.name: f
        for f in text_string_to_metric_families(text)
    }
    table = {series.name: series for series in ALL_SERIES}
    assert shown.keys() == table.keys()
    for name, series in table.items():
        family = shown[name]
        assert (family.type, family.documentation) == (series.kind, series.text)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(series.labels), name
    silent = {name for name, family in shown.items() if not family.samples}
    quotas = {"shadow_tenant_quota_used", "shadow_tenant_quota_limit"}
    assert silent == {"shadow_requests_rejected_total"} | quotas
