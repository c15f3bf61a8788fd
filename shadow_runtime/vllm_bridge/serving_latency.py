"""Latencies by adapter, taken where vLLM takes its own.

Runs in: API process.

vLLM's latency series carry no adapter, and what a client of the engine sees is no substitute: an
answer that is not streamed is one output, whatever number of steps it took. So the instance's output
processor is observed: whatever one engine step appends to vLLM's own statistics for one request is
passed on with that request's adapter. Over all adapters the series therefore equal vLLM's.

Seam: `OutputProcessor._update_stats_from_output` and `_update_stats_from_finished` of vLLM 0.32,
replaced on the instance. Can go once vLLM's series carry the adapter.
"""

from __future__ import annotations

from typing import Any, Protocol

from shadow_runtime.errors import UnsupportedStackError

_SEAMS = ("_update_stats_from_output", "_update_stats_from_finished")


class LatencySink(Protocol):
    """Takes latencies in seconds; `adapter` is None for the base model."""

    def observe_first_token(self, adapter: str | None, seconds: float) -> None:
        """One sequence's first token."""
        ...

    def observe_inter_token(self, adapter: str | None, seconds: float) -> None:
        """One later output of a sequence."""
        ...

    def observe_finished(self, adapter: str | None, seconds: float) -> None:
        """One finished sequence."""
        ...


def adapter_name(lora_name: str | None) -> str | None:
    """Return the adapter's name in a vLLM request name, `name@<digits>`; None for the base model."""
    return None if lora_name is None else lora_name.rpartition("@")[0] or lora_name


def observe_latency(output_processor: Any, sink: LatencySink) -> None:
    """Pass every latency that `output_processor` records from now on to `sink`.

    Without vLLM's statistics (`--disable-log-stats`) there is nothing to pass on.

    Raises:
        UnsupportedStackError: the processor is not the one that this module knows.
    """
    for name in _SEAMS:
        if not callable(getattr(output_processor, name, None)):
            raise UnsupportedStackError(f"vLLM's output processor has no {name}")
    update_output = output_processor._update_stats_from_output
    update_finished = output_processor._update_stats_from_finished

    def on_output(req_state: Any, output: Any, timestamp: Any, stats: Any) -> None:
        if stats is None:
            return update_output(req_state, output, timestamp, stats)
        num_first = len(stats.time_to_first_tokens_iter)
        num_inter = len(stats.inter_token_latencies_iter)
        update_output(req_state, output, timestamp, stats)
        adapter = adapter_name(req_state.lora_name)
        for seconds in stats.time_to_first_tokens_iter[num_first:]:
            sink.observe_first_token(adapter, seconds)
        for seconds in stats.inter_token_latencies_iter[num_inter:]:
            sink.observe_inter_token(adapter, seconds)

    def on_finished(req_state: Any, finish_reason: Any, stats: Any) -> None:
        if stats is None:
            return update_finished(req_state, finish_reason, stats)
        num_finished = len(stats.finished_requests)
        update_finished(req_state, finish_reason, stats)
        adapter = adapter_name(req_state.lora_name)
        for finished in stats.finished_requests[num_finished:]:
            sink.observe_finished(adapter, finished.e2e_latency)

    output_processor._update_stats_from_output = on_output
    output_processor._update_stats_from_finished = on_finished
