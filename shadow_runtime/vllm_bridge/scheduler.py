"""vLLM's scheduler with fair turns for adapters, and an adapter limit that also holds under pipeline parallelism.

Runs in: engine core.

**Turns.** vLLM starts a waiting request when its adapter and those of the requests scheduled in the same step are
within `max_loras`, and skips it otherwise: as long as that many adapters keep requests running, no other one ever gets
in. Here `admission.FairShare` decides at the head of each step which adapters may start requests and which must make
room. While no more adapters have requests than there are slots nothing of it runs.

**Limit.** Several batches are in flight with pipeline stages; vLLM counts the adapters of one of them, and when they
come due together its own assertion ends the engine (0.32, `Scheduler.schedule`). Here an adapter keeps its slot for as
long as a request of it is in `running`, in whatever batch.

**Making room** is vLLM's own preemption (`_preempt_request`), called where `reset_prefix_cache` calls it, between two
steps, and with the arguments with which `schedule` calls it when KV blocks run out. Hence no token is lost, doubled
or wrong:

- Tokens that the client has are kept in the request; it is computed again from them, mostly out of the prefix cache.
- With asynchronous scheduling (and with pipeline stages) a step may be in flight. vLLM marks its output stale: it is
  delivered when it returns, and only when all of it has come may the request start again, from those tokens on.
- The request does not start again in this step, its adapter being closed. So it never is in two consecutive steps with
  a preemption between them, the one case for which `reset_prefix_cache` clears `prev_step_scheduled_req_ids` and drops
  stale output. The worker learns of it from `preempted_req_ids` (runner V2) or by its absence from the step (V1).
- The blocks and the slot that it leaves are written by steps that a worker runs after those in flight.
- CUDA graphs do not see it: to the runner it is a batch of other requests.

Remove the limit when vLLM counts running requests instead of scheduled ones; the turns when it shares slots.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from shadow_runtime.admission import AdapterCensus, Demand, FairShare
from shadow_runtime.config import ShadowConfig
from shadow_runtime.types import DEFAULT_TENANT
from shadow_runtime.vllm_bridge.adapter_queue import BASE_LANE, AdapterQueue, lane_of
from shadow_runtime.vllm_bridge.request_tag import TENANT_KEY, WEIGHT_KEY
from shadow_runtime.vllm_bridge.step_wait import wait_without_spinning

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.core.sched.request_queue import RequestQueue, SchedulingPolicy
    from vllm.v1.request import Request

DEFAULT_WEIGHT = 1.0


class _TakesTurns:
    """Mixin in front of a vLLM scheduler class.

    Invariants: the adapters of `running` are at most `max_loras`; the census holds exactly the adapters' unfinished
    requests. Engine-core thread only.
    """

    vllm_config: Any
    policy: SchedulingPolicy
    running: list[Request]
    waiting: RequestQueue
    kv_holding_waiting: RequestQueue
    finished_recving_kv_req_ids: set[str]
    requires_kv_delivery: bool
    _pause_state: PauseState

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = ShadowConfig.from_dict(self.vllm_config.additional_config["shadow"])
        if config.has_server:
            wait_without_spinning()
        self._num_slots: int = self.vllm_config.lora_config.max_loras
        self._census = AdapterCensus()
        self._turns = FairShare(
            self._num_slots, config.adapter_quantum_tokens, config.max_adapter_wait_seconds
        )
        self._lanes = AdapterQueue(self.policy)
        self.waiting = self._lanes
        # Tokens that a preempted request had or has coming: only what is beyond them is progress.
        self._tokens_at_preemption: dict[str, int] = {}

    def add_request(self, request: Request) -> None:
        lane = lane_of(request)
        if lane != BASE_LANE:
            tenant, weight = _owner(request)
            self._census.add(request.request_id, lane, tenant, weight)
        super().add_request(request)  # type: ignore[misc]

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._census.remove(request.request_id)
        self._tokens_at_preemption.pop(request.request_id, None)
        return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self._tokens_at_preemption[request.request_id] = (
            request.num_output_tokens + request.num_output_placeholders
        )
        super()._preempt_request(request, *args, **kwargs)  # type: ignore[misc]

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        # The lanes hold back what is in `waiting`; requests that hold KV blocks wait elsewhere.
        is_ready = super()._handle_blocked_waiting_request(request)  # type: ignore[misc]
        return is_ready and self._lanes.is_open(lane_of(request))

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        if self._census.num_adapters <= self._num_slots:
            if self._lanes.is_restricted:
                self._turns.reset()
                self._lanes.open_all()
            return super().schedule(*args, **kwargs)  # type: ignore[misc]
        self._take_turns()
        output: SchedulerOutput = super().schedule(*args, **kwargs)  # type: ignore[misc]
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            adapter = self._census.find_adapter(request_id)
            if adapter is not None:
                self._turns.charge(adapter, num_tokens)
        return output

    def _take_turns(self) -> None:
        running: defaultdict[int, list[Request]] = defaultdict(list)
        for request in self.running:
            running[lane_of(request)].append(request)

        def may_preempt(adapter: int) -> bool:
            # While the engine pauses, a preempted request would be stuck instead of ending.
            is_paused = self._pause_state != PauseState.UNPAUSED
            return not is_paused and any(map(self._has_progressed, running[adapter]))

        decision = self._turns.decide(self._demands(running), may_preempt)
        if decision.preempted:
            self._preempt_adapters(decision.preempted)
        self._lanes.restrict(decision.open, decision.starting)

    def _demands(self, running: defaultdict[int, list[Request]]) -> Iterator[Demand]:
        holding_blocks = Counter(
            lane_of(r) for r in self.kv_holding_waiting if self._could_start(r)
        )
        for adapter, weight in self._census.weights().items():
            requests = running.get(adapter, ())
            num_waiting = holding_blocks[adapter] + self._num_waiting(adapter)
            num_tokens = sum(r.num_computed_tokens for r in requests)
            yield Demand(adapter, weight, len(requests), num_tokens, num_waiting)

    def _num_waiting(self, adapter: int) -> int:
        """Return the length of an adapter's lane, 0 when nothing in it could start; looks at few of its requests."""
        could_start = any(map(self._could_start, self._lanes.requests_of(adapter)))
        return self._lanes.num_requests_of(adapter) if could_start else 0

    def _could_start(self, request: Request) -> bool:
        """Whether nothing but its adapter's turn keeps a request from starting."""
        status = request.status
        if status is RequestStatus.WAITING or status is RequestStatus.PREEMPTED:
            return True
        if status is RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
            grammar = request.structured_output_request
            return grammar is not None and grammar.grammar is not None
        return (
            status is RequestStatus.WAITING_FOR_REMOTE_KVS
            and request.request_id in self.finished_recving_kv_req_ids
        )

    def _has_progressed(self, request: Request) -> bool:
        """Whether a running request got a token since it started or was last preempted."""
        return request.num_output_tokens > self._tokens_at_preemption.get(request.request_id, 0)

    def _preempt_adapters(self, adapters: frozenset[int]) -> None:
        timestamp = time.monotonic()
        victims = [r for r in self.running if lane_of(r) in adapters]
        self.running = [r for r in self.running if lane_of(r) not in adapters]
        # In reverse, so that they wait in the order in which they ran.
        for request in reversed(victims):
            self._preempt_request(
                request,
                timestamp,
                drop_stale_output=self.requires_kv_delivery,
            )


def _owner(request: Request) -> tuple[str, float]:
    """Return a request's tenant and the tenant's weight."""
    params = request.sampling_params
    tags = (params.extra_args if params is not None else None) or {}
    return str(tags.get(TENANT_KEY, DEFAULT_TENANT)), float(tags.get(WEIGHT_KEY, DEFAULT_WEIGHT))


class ShadowScheduler(_TakesTurns, Scheduler):
    """For engines without asynchronous scheduling."""


class ShadowAsyncScheduler(_TakesTurns, AsyncScheduler):
    """For engines with asynchronous scheduling."""


def make_scheduler(*args: Any, **kwargs: Any) -> Scheduler:
    """Build the scheduler that an engine's settings ask for; vLLM calls it like a scheduler class."""
    config = kwargs["vllm_config"]
    cls = ShadowAsyncScheduler if config.scheduler_config.async_scheduling else ShadowScheduler
    return cls(*args, **kwargs)
