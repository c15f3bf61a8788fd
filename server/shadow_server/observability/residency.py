"""What the engine holds and works on, as routers in front of several servers read it, and this server's slots.

Runs in: API process.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from shadow_server.engine import AdapterEntry, AdapterState, Engine
from shadow_server.observability.series import (
    BUILD,
    HOST_BYTES,
    LOADED,
    MAX_GPU,
    NUM_CPU,
    NUM_GPU,
    REQUEST_INFO,
    SLOTS,
    STALLED,
)

MAX_LOADED_LABELS = 1000
"""Names with a `vllm:lora_adapter_loaded` of their own; those in device memory come first."""

_VLLM_LEVELS = {"gpu": "gpu", "host": "cpu"}


class ResidencyGauges(Collector):
    """Read when Prometheus asks, on another thread: counts may be one change apart."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        """Return the gauges."""
        entries = [e for e in self._engine.adapters.entries() if e.level in _VLLM_LEVELS]
        on_device = {entry.digest for entry in entries if entry.level == "gpu"}
        yield self._loaded(entries)
        yield NUM_GPU.value(len(on_device))
        yield NUM_CPU.value(len({entry.digest for entry in entries}))
        yield MAX_GPU.value(self._engine.max_step_adapters)
        yield self._slots(entries, on_device)
        yield HOST_BYTES.value(self._engine.adapters.num_host_bytes)
        yield self._request_info()
        yield STALLED.value(self._stalled_seconds())
        versions = self._engine.versions
        labels = [versions["version"], versions["engine_version"], self._engine.base_names[0]]
        yield BUILD.value(1, labels)

    def _is_pinned(self, entry: AdapterEntry) -> bool:
        draining = entry.state is AdapterState.DRAINING
        return not draining and self._engine.adapters.is_pinned(entry.name)

    def _loaded(self, entries: list[AdapterEntry]) -> Metric:
        family = LOADED.gauge()
        # A draining version has its successor's name: the nearest one speaks for both.
        nearest: dict[str, AdapterEntry] = {}
        for entry in sorted(entries, key=lambda e: (e.level != "gpu", e.name.display)):
            nearest.setdefault(entry.name.display, entry)
        for name, entry in list(nearest.items())[:MAX_LOADED_LABELS]:
            pinned = "true" if self._is_pinned(entry) else "false"
            rank = str(entry.manifest.injection_rank)
            family.add_metric([name, _VLLM_LEVELS[entry.level], pinned, rank], 1)
        return family

    def _slots(self, entries: list[AdapterEntry], on_device: set[str]) -> Metric:
        pinned = {entry.digest for entry in entries if self._is_pinned(entry)} & on_device
        family = SLOTS.gauge()
        family.add_metric(["pinned"], len(pinned))
        family.add_metric(["used"], len(on_device) - len(pinned))
        family.add_metric(["free"], max(0, self._engine.num_adapter_slots - len(on_device)))
        return family

    def _request_info(self) -> Metric:
        names: dict[bool, set[str]] = {True: set(), False: set()}
        for sequence in self._engine.sequences():
            if sequence.origin.adapter is not None:
                names[sequence.is_waiting].add(sequence.origin.adapter)
        running, waiting = (",".join(sorted(names[is_waiting])) for is_waiting in (False, True))
        labels = [str(self._engine.max_step_adapters), running, waiting]
        return REQUEST_INFO.value(datetime.now(UTC).timestamp(), labels)

    def _stalled_seconds(self) -> float:
        last = self._engine.last_output_at
        if not self._engine.sequences():
            return 0.0
        since = [sequence.age_seconds for sequence in self._engine.sequences()]
        quiet = max(since, default=0.0)
        # Work that came after a quiet hour has not been stalled for an hour.
        return quiet if last is None else min(quiet, time.monotonic() - last)
