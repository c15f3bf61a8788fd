"""vLLM's scheduler with an adapter limit that also holds under pipeline parallelism.

Runs in: engine core.

vLLM admits a waiting request when its adapter and those of the running requests *scheduled in the same step* are within
`max_loras`. With several pipeline stages, batches in flight are not in that count; when they come due together the
step has too many adapters and vLLM's own assertion ends the engine (0.32, `Scheduler.schedule`). Here the adapters of
all running requests count.

Remove when vLLM counts running requests instead of scheduled ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

if TYPE_CHECKING:
    from vllm.v1.request import Request


class _CountsRunningAdapters:
    """Mixin in front of a vLLM scheduler class."""

    _step_adapters: set[int] | None = None

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        self._step_adapters = None
        return super().schedule(*args, **kwargs)  # type: ignore[misc]

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        return super()._handle_blocked_waiting_request(request) and self._admits(request)  # type: ignore[misc]

    def _admits(self, request: Request) -> bool:
        if request.lora_request is None:
            return True
        if self._step_adapters is None:
            self._step_adapters = {
                running.lora_request.lora_int_id
                for running in self.running  # type: ignore[attr-defined]
                if running.lora_request is not None
            }
        adapter = request.lora_request.lora_int_id
        if adapter not in self._step_adapters:
            if len(self._step_adapters) >= self.lora_config.max_loras:  # type: ignore[attr-defined]
                return False
            self._step_adapters.add(adapter)
        return True


class ShadowScheduler(_CountsRunningAdapters, Scheduler):
    """For engines without asynchronous scheduling."""


class ShadowAsyncScheduler(_CountsRunningAdapters, AsyncScheduler):
    """For engines with asynchronous scheduling."""


def make_scheduler(*args: Any, **kwargs: Any) -> Scheduler:
    """Build the scheduler that an engine's settings ask for; vLLM calls it like a scheduler class."""
    config = kwargs["vllm_config"]
    cls = ShadowAsyncScheduler if config.scheduler_config.async_scheduling else ShadowScheduler
    return cls(*args, **kwargs)
