"""Every series that the server adds to the engine's own: one table.

Runs in: API process. `docs/metrics.md` is made from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

Kind = Literal["counter", "gauge", "histogram"]

BASE_LABEL = "__base__"
"""Adapter label of the bare base model."""

OTHER_LABEL = "__other__"
"""Label of all adapters, or all tenants, that have none of their own."""

ORIGIN_LABELS = ("adapter", "tenant")

# vLLM's own bounds, so that dashboards line up; inter-token latencies get finer ones below 10 ms, where a small model
# decodes, and queues below 300 ms, where a healthy server is.
FIRST_TOKEN_BOUNDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
INTER_TOKEN_BOUNDS = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4),
    *(0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
QUEUE_BOUNDS = (
    *(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0),
    *(15.0, 20.0, 30.0, 60.0, 120.0, 480.0),
)
E2E_BOUNDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
LOAD_BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
    *(60.0, 120.0),
)


@dataclass(frozen=True, slots=True)
class Series:
    """One series.

    Attributes:
        name: as queries have it; counters end in `_total`.
        kind: its Prometheus type.
        text: what it means, one sentence.
        labels: names of its labels.
        bounds: upper bounds of a histogram's buckets, ascending, in the series' unit.
    """

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    def counter(self) -> CounterMetricFamily:
        """Return an empty family of a counter."""
        return CounterMetricFamily(self.name, self.text, labels=self.labels)

    def gauge(self) -> GaugeMetricFamily:
        """Return an empty family of a gauge."""
        return GaugeMetricFamily(self.name, self.text, labels=self.labels)

    def histogram(self) -> HistogramMetricFamily:
        """Return an empty family of a histogram."""
        return HistogramMetricFamily(self.name, self.text, labels=self.labels)

    def value(self, value: float, labels: Sequence[str] = ()) -> Metric:
        """Return the gauge with one sample."""
        family = self.gauge()
        family.add_metric(labels, value)
        return family


FIRST_TOKEN = Series(
    "shadow_time_to_first_token_seconds",
    "histogram",
    "Arrival of a prompt in the engine to its first token, as the engine measures it.",
    ORIGIN_LABELS,
    FIRST_TOKEN_BOUNDS,
)
INTER_TOKEN = Series(
    "shadow_inter_token_latency_seconds",
    "histogram",
    "Time between two outputs of a running sequence, one observation per engine step.",
    ORIGIN_LABELS,
    INTER_TOKEN_BOUNDS,
)
QUEUE = Series(
    "shadow_request_queue_seconds",
    "histogram",
    "Time that a sequence with a first token had waited for its first turn in the engine.",
    ORIGIN_LABELS,
    QUEUE_BOUNDS,
)
E2E = Series(
    "shadow_e2e_request_seconds",
    "histogram",
    "Arrival of a prompt in the engine to the end of its answer; aborted ones are not counted.",
    ORIGIN_LABELS,
    E2E_BOUNDS,
)
REQUESTS = Series(
    "shadow_requests_total",
    "counter",
    "HTTP requests for generation by how they ended: ok, invalid (4xx), rejected (429, 503), error (5xx, or in the "
    "stream), aborted (the client left).",
    (*ORIGIN_LABELS, "outcome"),
)
TOKENS = Series(
    "shadow_tokens_total",
    "counter",
    "Tokens by kind: prompt (cached ones included, counted with the first output) and generated.",
    (*ORIGIN_LABELS, "kind"),
)
RUNNING = Series(
    "shadow_sequences",
    "gauge",
    "Sequences in the engine by state: waiting (no token yet) and running.",
    (*ORIGIN_LABELS, "state"),
)
WAITING_AGE = Series(
    "shadow_oldest_waiting_seconds",
    "gauge",
    "Age of the oldest sequence that has no token yet; 0 without one.",
    ORIGIN_LABELS,
)
LOADS = Series(
    "shadow_adapter_load_seconds",
    "histogram",
    "Time that the engine took to load an adapter, by what asked for it and how it ended.",
    ("source", "result"),
    LOAD_BOUNDS,
)
WAITS = Series(
    "shadow_adapter_wait_seconds",
    "histogram",
    "Time that a request waited for an adapter that the engine did not hold.",
    (),
    LOAD_BOUNDS,
)
EVICTIONS = Series(
    "shadow_adapter_evictions_total",
    "counter",
    "Adapters that lost their host memory (capacity, deleted) or their device slot (superseded).",
    ("reason",),
)
ADAPTERS = Series(
    "shadow_adapters",
    "gauge",
    "Adapters of this server by state and by the nearest place that holds their bytes.",
    ("state", "level"),
)
PINNED = Series("shadow_adapters_pinned", "gauge", "Adapters that are kept resident.")
LEASES = Series("shadow_adapter_running_requests", "gauge", "Running requests that use an adapter.")
SLOTS = Series(
    "shadow_adapter_slots",
    "gauge",
    "Places for adapters in device memory by state: pinned, used (by others) and free.",
    ("state",),
)
HOST_BYTES = Series(
    "shadow_host_tier_bytes", "gauge", "Host memory of the adapters that the engine holds."
)
REJECTED = Series(
    "shadow_requests_rejected_total",
    "counter",
    "Requests that were refused before the engine saw them, by error code and tenant.",
    ("reason", "tenant"),
)
QUOTA_USED = Series(
    "shadow_tenant_quota_used",
    "gauge",
    "Requests or tokens that a tenant uses of a quota now; a minute's come back evenly.",
    ("tenant", "quota"),
)
QUOTA_LIMIT = Series(
    "shadow_tenant_quota_limit",
    "gauge",
    "The tenant's quota: max_concurrent_requests, requests_per_minute or tokens_per_minute.",
    ("tenant", "quota"),
)
STALLED = Series(
    "shadow_engine_stalled_seconds",
    "gauge",
    "Time since the engine last gave any sequence output; 0 while it has none to work on.",
)
BUILD = Series(
    "shadow_build_info",
    "gauge",
    "Always 1; the labels say what runs.",
    ("version", "engine_version", "base_model"),
)
REQUEST_INFO = Series(
    "vllm:lora_requests_info",
    "gauge",
    "Unix time of the scrape; the labels list the adapters with sequences that run and that wait for a first token.",
    ("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
)
LOADED = Series(
    "vllm:lora_adapter_loaded",
    "gauge",
    "1 for every adapter that the engine holds, in device memory (gpu) or in host memory (cpu).",
    ("adapter_name", "level", "pinned", "rank"),
)
NUM_GPU = Series(
    "vllm:num_gpu_loaded_lora_adapters", "gauge", "Adapters in device memory, each digest once."
)
NUM_CPU = Series(
    "vllm:num_cpu_loaded_lora_adapters",
    "gauge",
    "Adapters in host memory, those on device included.",
)
MAX_GPU = Series(
    "vllm:max_gpu_lora_adapters", "gauge", "Distinct adapters that one engine step may mix."
)
VLLM_LOADS = Series(
    "vllm:lora_adapter_load_seconds",
    "histogram",
    "Time that the engine took to load an adapter, loads that failed aside.",
    (),
    LOAD_BOUNDS,
)

ALL_SERIES = (
    *(FIRST_TOKEN, INTER_TOKEN, QUEUE, E2E, REQUESTS, TOKENS, RUNNING, WAITING_AGE),
    *(LOADS, WAITS, EVICTIONS, ADAPTERS, PINNED, LEASES, SLOTS, HOST_BYTES),
    *(REJECTED, QUOTA_USED, QUOTA_LIMIT, STALLED, BUILD),
    *(REQUEST_INFO, LOADED, NUM_GPU, NUM_CPU, MAX_GPU, VLLM_LOADS),
)
"""The table, in the order of the document."""
