"""The Grafana dashboards: fleet, adapter and tenant, each a grid of panels over Prometheus queries.

Queries are restricted to what the page's variables select. The series are the server's (docs/metrics.md) and vLLM's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]

WIDTH = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
SERVER = 'job=~"$job",instance=~"$instance"'
ORIGIN = f'{SERVER},adapter=~"$adapter",tenant=~"$tenant"'
QUANTILES = (("p50", 0.5), ("p99", 0.99))

Kind = Literal["stat", "state-timeline", "table", "timeseries"]


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        title: what it shows.
        queries: legend to expression.
        unit: as Grafana names them.
        width: columns of 24.
        kind: Grafana's panel type.
        text: what a reader should know, shown behind the title's mark.
        options: of the fields, over the kind's own.
    """

    title: str
    queries: dict[str, str]
    unit: str = "short"
    width: int = 8
    kind: Kind = "timeseries"
    text: str = ""
    options: Json = field(default_factory=dict)

    @property
    def height(self) -> int:
        """Rows that it takes."""
        return 4 if self.kind == "stat" else 8

    def to_json(self, number: int, column: int, row: int) -> Json:
        """Return Grafana's object of the panel."""
        is_now = self.kind in ("stat", "table")
        targets = [
            {
                "refId": chr(ord("A") + index),
                "expr": expression,
                "legendFormat": legend,
                "instant": is_now,
                "range": not is_now,
                **({"format": "table"} if self.kind == "table" else {}),
            }
            for index, (legend, expression) in enumerate(self.queries.items())
        ]
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.text,
            "datasource": SOURCE,
            "gridPos": {"x": column, "y": row, "w": self.width, "h": self.height},
            "targets": targets,
            "fieldConfig": {
                "defaults": {"unit": self.unit, **_custom(self.kind), **self.options},
                "overrides": [],
            },
            "options": _OPTIONS[self.kind],
        }


_LEGEND = {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]}
_OPTIONS: dict[Kind, Json] = {
    "timeseries": {"legend": _LEGEND, "tooltip": {"mode": "multi", "sort": "desc"}},
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"]},
        "colorMode": "value",
        "graphMode": "none",
    },
    "state-timeline": {"showValue": "never", "mergeValues": True, "rowHeight": 0.8},
    "table": {"showHeader": True},
}
_RESIDENCY = {
    "min": 0,
    "max": 2,
    "color": {"mode": "thresholds"},
    "thresholds": {
        "mode": "absolute",
        "steps": [
            {"value": None, "color": "gray"},
            {"value": 1, "color": "yellow"},
            {"value": 2, "color": "green"},
        ],
    },
    "mappings": [
        {
            "type": "value",
            "options": {
                "0": {"text": "disk"},
                "1": {"text": "host memory"},
                "2": {"text": "device"},
            },
        }
    ],
}
_RATIO = {"min": 0, "max": 1}


def _custom(kind: Kind) -> Json:
    if kind != "timeseries":
        return {}
    return {"custom": {"lineWidth": 1, "fillOpacity": 8, "showPoints": "never", "spanNulls": False}}


def _rate(series: str, selector: str, by: str = "") -> str:
    total = f"sum by ({by})" if by else "sum"
    return f"{total} (rate({series}{{{selector}}}[$__rate_interval]))"


def _quantiles(series: str, selector: str, by: str = "") -> dict[str, str]:
    groups = f"le, {by}" if by else "le"
    shown = " ".join(f"{{{{{label}}}}}" for label in by.split(", ") if label)
    buckets = _rate(f"{series}_bucket", selector, groups)
    return {
        f"{shown} {name}".strip(): f"histogram_quantile({quantile}, {buckets})"
        for name, quantile in QUANTILES
    }


def _fleet() -> list[list[Panel]]:
    now = [
        Panel("Servers", {"": f"count(shadow_build_info{{{SERVER}}})"}, kind="stat", width=4),
        Panel("Requests", {"": _rate("shadow_requests_total", SERVER)}, "reqps", 4, "stat"),
        Panel(
            "Tokens generated",
            {"": _rate("shadow_tokens_total", f'{SERVER},kind="generated"')},
            "short",
            4,
            "stat",
        ),
        Panel(
            "Failed",
            {
                "": _rate("shadow_requests_total", f'{SERVER},outcome="error"')
                + f" / {_rate('shadow_requests_total', SERVER)}"
            },
            "percentunit",
            4,
            "stat",
        ),
        Panel("Waiting", {"": f"sum(vllm:num_requests_waiting{{{SERVER}}})"}, width=4, kind="stat"),
        Panel(
            "Longest without a token",
            {"": f"max(shadow_engine_stalled_seconds{{{SERVER}}})"},
            "s",
            4,
            "stat",
            "0 while the engine has nothing to do.",
        ),
    ]
    traffic = [
        Panel(
            "Requests by outcome",
            {"{{outcome}}": _rate("shadow_requests_total", SERVER, "outcome")},
            "reqps",
        ),
        Panel("Tokens by kind", {"{{kind}}": _rate("shadow_tokens_total", SERVER, "kind")}),
        Panel(
            "Requests in the engine",
            {
                "running": f"sum(vllm:num_requests_running{{{SERVER}}})",
                "waiting": f"sum(vllm:num_requests_waiting{{{SERVER}}})",
            },
        ),
    ]
    latency = [
        Panel("Time to first token", _quantiles("shadow_time_to_first_token_seconds", SERVER), "s"),
        Panel("Inter-token latency", _quantiles("shadow_inter_token_latency_seconds", SERVER), "s"),
        Panel("Whole request", _quantiles("shadow_e2e_request_seconds", SERVER), "s"),
    ]
    adapters = [
        Panel(
            "Device slots",
            {"{{state}}": f"sum by (state) (shadow_adapter_slots{{{SERVER}}})"},
            text="Full and waiting for long: adapters take turns.",
        ),
        Panel(
            "Adapters by place",
            {"{{state}} {{level}}": f"sum by (state, level) (shadow_adapters{{{SERVER}}}) > 0"},
        ),
        Panel(
            "Host memory of adapters",
            {"{{instance}}": f"shadow_host_tier_bytes{{{SERVER}}}"},
            "bytes",
        ),
    ]
    changes = [
        Panel(
            "Loads",
            {"{{result}}": _rate("shadow_adapter_load_seconds_count", SERVER, "result")},
            "ops",
        ),
        Panel("Time to load", _quantiles("shadow_adapter_load_seconds", SERVER), "s"),
        Panel(
            "Busiest adapters",
            {"{{adapter}}": f"topk(10, {_rate('shadow_requests_total', SERVER, 'adapter')})"},
            "reqps",
        ),
    ]
    engine = [
        Panel(
            "KV cache in use",
            {"{{instance}}": f"vllm:kv_cache_usage_perc{{{SERVER}}}"},
            "percentunit",
            options=_RATIO,
        ),
        Panel(
            "Prompt tokens found in the prefix cache",
            {
                "": f"{_rate('vllm:prefix_cache_hits_total', SERVER)}"
                f" / {_rate('vllm:prefix_cache_queries_total', SERVER)}"
            },
            "percentunit",
            options=_RATIO,
        ),
        Panel("What runs", {"": f"shadow_build_info{{{SERVER}}}"}, kind="table"),
    ]
    return [now, traffic, latency, adapters, changes, engine]


def _adapter() -> list[list[Panel]]:
    by = "adapter"
    loaded = f'vllm:lora_adapter_loaded{{{SERVER},adapter_name=~"$adapter"'
    return [
        [
            Panel(
                "Time to first token",
                _quantiles("shadow_time_to_first_token_seconds", ORIGIN, by),
                "s",
                12,
            ),
            Panel(
                "Inter-token latency",
                _quantiles("shadow_inter_token_latency_seconds", ORIGIN, by),
                "s",
                12,
            ),
        ],
        [
            Panel(
                "Where the adapter is",
                {
                    "{{adapter_name}}": f'max by (adapter_name) ({loaded},level="gpu"}} * 2'
                    f' or {loaded},level="cpu"}})'
                },
                kind="state-timeline",
                width=24,
                text="Nothing where it is on disk only; its next request waits for the load.",
                options=_RESIDENCY,
            )
        ],
        [
            Panel(
                "Oldest request without a token",
                {
                    "{{adapter}}": f"max by (adapter) (shadow_oldest_waiting_seconds{{{ORIGIN}}})",
                },
                "s",
            ),
            Panel("Time in the queue", _quantiles("shadow_request_queue_seconds", ORIGIN, by), "s"),
            Panel(
                "Waiting for a load",
                _quantiles("shadow_adapter_wait_seconds", SERVER),
                "s",
                text="Of all adapters: requests whose adapter was not in memory.",
            ),
        ],
        [
            Panel(
                "Requests by outcome",
                {
                    "{{adapter}} {{outcome}}": _rate(
                        "shadow_requests_total", ORIGIN, "adapter, outcome"
                    )
                },
                "reqps",
            ),
            Panel(
                "Tokens",
                {"{{adapter}} {{kind}}": _rate("shadow_tokens_total", ORIGIN, "adapter, kind")},
            ),
            Panel(
                "Sequences",
                {
                    "{{adapter}} {{state}}": f"sum by (adapter, state) (shadow_sequences{{{ORIGIN}}})",
                },
            ),
        ],
        [
            Panel(
                "Loads of all adapters",
                {
                    "{{source}} {{result}}": _rate(
                        "shadow_adapter_load_seconds_count", SERVER, "source, result"
                    )
                },
                "ops",
            ),
            Panel(
                "Evictions of all adapters",
                {"{{reason}}": _rate("shadow_adapter_evictions_total", SERVER, "reason")},
                "ops",
            ),
            Panel("Whole request", _quantiles("shadow_e2e_request_seconds", ORIGIN, by), "s"),
        ],
    ]


def _tenant() -> list[list[Panel]]:
    rows = f'{SERVER},tenant=~"$tenant"'
    return [
        [
            Panel(
                "Tokens",
                {"{{tenant}} {{kind}}": _rate("shadow_tokens_total", rows, "tenant, kind")},
                width=12,
            ),
            Panel(
                "Requests by outcome",
                {"{{tenant}} {{outcome}}": _rate("shadow_requests_total", rows, "tenant, outcome")},
                "reqps",
                12,
            ),
        ],
        [
            Panel(
                "Refusals by reason",
                {
                    "{{tenant}} {{reason}}": _rate(
                        "shadow_requests_rejected_total", rows, "tenant, reason"
                    )
                },
                "reqps",
            ),
            Panel(
                "Refused",
                {
                    "{{tenant}}": _rate(
                        "shadow_requests_total", f'{rows},outcome="rejected"', "tenant"
                    )
                    + f" / {_rate('shadow_requests_total', rows, 'tenant')}"
                },
                "percentunit",
                options=_RATIO,
            ),
            Panel(
                "Quota in use",
                {
                    "{{tenant}} {{quota}} {{instance}}": f"shadow_tenant_quota_used{{{rows}}}"
                    f" / shadow_tenant_quota_limit{{{rows}}}"
                },
                "percentunit",
                text="Rates and requests are counted by each server.",
                options=_RATIO,
            ),
        ],
        [
            Panel(
                "Time to first token",
                _quantiles("shadow_time_to_first_token_seconds", rows, "tenant"),
                "s",
            ),
            Panel(
                "Inter-token latency",
                _quantiles("shadow_inter_token_latency_seconds", rows, "tenant"),
                "s",
            ),
            Panel(
                "Busiest adapters",
                {"{{adapter}}": f"topk(10, {_rate('shadow_requests_total', rows, 'adapter')})"},
                "reqps",
            ),
        ],
    ]


def dashboards() -> dict[str, Json]:
    """Return the dashboards by the name of their file."""
    origin = ("adapter", "tenant")
    return {
        "fleet": _page("fleet", "ShadowServe fleet", _fleet(), ()),
        "adapter": _page("adapter", "ShadowServe adapter", _adapter(), origin),
        "tenant": _page("tenant", "ShadowServe tenant", _tenant(), ("tenant",)),
    }


def _page(name: str, title: str, rows: list[list[Panel]], labels: tuple[str, ...]) -> Json:
    panels: list[Json] = []
    top = 0
    for row in rows:
        left = 0
        for panel in row:
            panels.append(panel.to_json(len(panels) + 1, left, top))
            left += panel.width
        if left != WIDTH:
            raise ValueError(f"a row of {title} is {left} columns wide, not {WIDTH}")
        top += max(panel.height for panel in row)
    variables = [
        _variable("job", "shadow_build_info"),
        _variable("instance", 'shadow_build_info{job=~"$job"}'),
    ]
    variables += [_variable(label, f"shadow_requests_total{{{SERVER}}}") for label in labels]
    return {
        "uid": f"shadowserve-{name}",
        "title": title,
        "tags": ["shadowserve"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "links": [
            {
                "type": "dashboards",
                "title": "ShadowServe",
                "tags": ["shadowserve"],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {"list": [_DATASOURCE, *variables]},
        "annotations": {"list": []},
        "panels": panels,
    }


_DATASOURCE = {
    "name": "datasource",
    "label": "Source",
    "type": "datasource",
    "query": "prometheus",
    "current": {},
}


def _variable(label: str, series: str) -> Json:
    query = f"label_values({series}, {label})"
    return {
        "name": label,
        "label": label.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "values"},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
