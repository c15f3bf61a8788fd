"""What requests experience in the engine, by adapter and tenant, taken where vLLM takes its own statistics.

Runs in: API process.

vLLM's latency series carry neither, and what a client of the engine sees is no substitute: an answer that is not
streamed is one output, whatever number of steps it took. So the instance's output processor is observed: whatever one
engine step appends to vLLM's own statistics for one sequence is passed on with that sequence's origin. Over all origins
our series therefore equal vLLM's.

Requests whose id begins with PROBE_PREFIX are the server's own: they are proof of life and appear in no statistics,
neither vLLM's nor ours, or an idle server would show latencies that no client had.

Seam: `OutputProcessor.add_request`, `_update_stats_from_output`, `_update_stats_from_finished` and
`update_scheduler_stats` of vLLM 0.32, replaced on the instance. Can go once vLLM's series carry the adapter and a label
of the caller's.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, Protocol

from shadow_runtime.errors import UnsupportedStackError
from shadow_runtime.types import DEFAULT_TENANT, RequestOrigin, SequenceState
from shadow_runtime.vllm_bridge.request import adapter_name
from shadow_runtime.vllm_bridge.request_tag import TENANT_KEY

PROBE_PREFIX = "shadow-probe-"
"""Begins the ids of the server's own requests; clients' ids never reach the engine."""

_ORIGIN = "shadow_origin"
_UNKNOWN = RequestOrigin(None, DEFAULT_TENANT)
_SEAMS = (
    "add_request",
    "_update_stats_from_output",
    "_update_stats_from_finished",
    "update_scheduler_stats",
)


class RequestSink(Protocol):
    """Takes what sequences experience, as the engine's own clocks measured it; must return at once and never raise."""

    def observe_first_token(
        self, origin: RequestOrigin, seconds: float, queue_seconds: float
    ) -> None:
        """One sequence's first token came `seconds` after its arrival, of which it was queued for `queue_seconds`."""
        ...

    def observe_inter_token(self, origin: RequestOrigin, seconds: float) -> None:
        """One later output of a sequence, `seconds` after the one before."""
        ...

    def observe_tokens(
        self, origin: RequestOrigin, num_prompt_tokens: int, num_generated_tokens: int
    ) -> None:
        """One output of a sequence; its prompt is counted with the first one."""
        ...

    def observe_finished(self, origin: RequestOrigin, seconds: float) -> None:
        """One sequence finished `seconds` after its arrival."""
        ...


class RequestObserver:
    """Watches one output processor.

    Attributes:
        last_output_at: monotonic instant of the last output of any sequence, probes included, or of the last step that
            ended since then: one prompt's prefill may take many steps without any. None before the first output.

    Ownership: the event loop's thread; `sequences` may be called on any.
    """

    def __init__(self, processor: Any) -> None:
        """Observe `processor` from now on; nothing is passed on before `sink` is set.

        Raises:
            UnsupportedStackError: the processor is not the one that this module knows.
        """
        for name in _SEAMS:
            if not callable(getattr(processor, name, None)):
                raise UnsupportedStackError(f"vLLM's output processor has no {name}")
        self.last_output_at: float | None = None
        self.sink: RequestSink | None = None
        self._processor = processor
        self._add, self._update, self._finish, self._step = (getattr(processor, n) for n in _SEAMS)
        watched = (self.add, self.output, self.finished, self.step)
        for name, method in zip(_SEAMS, watched, strict=True):
            setattr(processor, name, method)

    def add(self, request: Any, *args: Any, **options: Any) -> None:
        """Start a sequence: what its outputs are counted under is decided once."""
        self._add(request, *args, **options)
        state = self._processor.request_states.get(request.request_id)
        if state is None:
            return
        is_probe = str(state.external_req_id).startswith(PROBE_PREFIX)
        setattr(state, _ORIGIN, None if is_probe else _origin_of(request))

    def output(self, req_state: Any, output: Any, timestamp: Any, stats: Any) -> None:
        """Pass on what one output of a sequence adds to vLLM's statistics. Called for every token."""
        self.last_output_at = time.monotonic()
        origin = getattr(req_state, _ORIGIN, _UNKNOWN)
        sink = self.sink
        if stats is None or origin is None or sink is None:
            self._update(req_state, output, timestamp, None if origin is None else stats)
            return
        is_first = req_state.is_prefilling
        num_prompt = stats.prompt_token_stats.total if is_first else 0
        self._update(req_state, output, timestamp, stats)
        if is_first:
            num_prompt = stats.prompt_token_stats.total - num_prompt
            times = req_state.stats
            queued = times.scheduled_ts - times.queued_ts
            sink.observe_first_token(origin, stats.time_to_first_tokens_iter[-1], queued)
        else:
            sink.observe_inter_token(origin, stats.inter_token_latencies_iter[-1])
        sink.observe_tokens(origin, num_prompt, len(output.new_token_ids))

    def finished(self, req_state: Any, finish_reason: Any, stats: Any) -> None:
        """Pass on that a sequence ended by itself."""
        origin = getattr(req_state, _ORIGIN, _UNKNOWN)
        if stats is None or origin is None:
            self._finish(req_state, finish_reason, None)
            return
        self._finish(req_state, finish_reason, stats)
        if self.sink is not None:
            self.sink.observe_finished(origin, stats.finished_requests[-1].e2e_latency)

    def step(self, scheduler_stats: Any) -> None:
        """Note that a step has ended; without vLLM's statistics none is heard of."""
        if scheduler_stats is not None and self.last_output_at is not None:
            self.last_output_at = time.monotonic()
        self._step(scheduler_stats)

    def sequences(self) -> list[SequenceState]:
        """Return what the engine works on now, its probes aside; without vLLM's statistics ages are 0."""
        now = datetime.now(UTC).timestamp()  # arrivals are wall-clock times of vLLM's
        states = list(self._processor.request_states.values())
        origins = [getattr(state, _ORIGIN, _UNKNOWN) for state in states]
        return [
            SequenceState(origin, state.is_prefilling, _age_seconds(state, now))
            for origin, state in zip(origins, states, strict=True)
            if origin is not None
        ]


def find_origin(req_state: Any) -> RequestOrigin | None:
    """Return what a sequence in the engine is counted under, None for a probe of the server's own."""
    found: RequestOrigin | None = getattr(req_state, _ORIGIN, _UNKNOWN)
    return found


def _origin_of(request: Any) -> RequestOrigin:
    params = request.sampling_params
    fields = {} if params is None else params.extra_args or {}
    return RequestOrigin(adapter_name(request.lora_request), fields.get(TENANT_KEY, DEFAULT_TENANT))


def _age_seconds(state: Any, now: float) -> float:
    return 0.0 if state.stats is None else max(0.0, now - state.stats.arrival_time)
