"""Writes docs/metrics.md: `python -m shadow_server.observability.document > docs/metrics.md`.

Runs in: a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from shadow_server.observability.request import MAX_TENANT_LABELS
from shadow_server.observability.residency import MAX_LOADED_LABELS
from shadow_server.observability.series import ALL_SERIES, Series

_HEAD = f"""\
# Metrics

Made from the table in `server/shadow_server/observability/series.py` by `python -m
shadow_server.observability.document > docs/metrics.md`; a test compares the two. `/metrics` shows these and all of
vLLM's own `vllm:*` series, and needs an admin's key on a server with tenants.

**Where durations come from.** From vLLM's own timestamps, so over all labels `shadow_time_to_first_token_seconds`,
`shadow_inter_token_latency_seconds` and `shadow_e2e_request_seconds` have the counts and sums of vLLM's series.
They begin when a prompt enters the engine: waiting for an adapter that the engine does not hold comes before and is
in `shadow_adapter_wait_seconds`. A request of several prompts or choices is several sequences there, and one
request in `shadow_requests_total`.

**Labels.** `adapter` is the adapter's name (`tenant/name` outside of the default tenant), `__base__` the bare base
model. The busiest pairs of adapter and tenant, 100 unless `--max-adapter-labels` says otherwise, have series of
their own; the others count under `__other__` of their tenant.
{MAX_TENANT_LABELS} tenants have labels there and for the base model, the rest is `__other__` too: beyond
`--max-adapter-labels` there are {2 * MAX_TENANT_LABELS + 2} pairs at most, whatever clients do. An observation
stays where it was made: `sum(rate(...))` is exact when an adapter gains or loses its label, and the sum of the bare
counters falls when a series goes, as at a restart. Requests that ended before their adapter was known count under
`__other__`. `vllm:lora_adapter_loaded` names at most {MAX_LOADED_LABELS} adapters, those in device memory first.

**Probes.** The one-token requests of `/health/ready` are in none of these series, nor in vLLM's latencies.

| series | type | labels | meaning |
|---|---|---|---|
"""


def render_metrics(table: Iterable[Series]) -> str:
    """Return the document."""
    table = tuple(table)
    return _HEAD + "".join(_row(series) for series in table) + _buckets(table)


def _row(series: Series) -> str:
    labels = ", ".join(f"`{label}`" for label in series.labels)
    return f"| `{series.name}` | {series.kind} | {labels} | {series.text} |\n"


def _buckets(table: Iterable[Series]) -> str:
    lines = [
        f"- `{series.name}`: {', '.join(f'{bound:g}' for bound in series.bounds)}\n"
        for series in table
        if series.bounds
    ]
    return "\nUpper bounds of the buckets, in seconds:\n\n" + "".join(lines)


if __name__ == "__main__":
    sys.stdout.write(render_metrics(ALL_SERIES))
