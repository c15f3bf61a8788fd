"""How the engine core and its worker wait for one another.

Runs in: engine core | GPU worker.

Both are processes on a CPU, and vLLM has each ask again and again whether the other's message has come: its
`SpinCondition` sleeps until it is notified only after a second without any message. That saves 0.1 to 0.4 ms a message
where a core is idle. An engine that computes on the CPU has none beside a server: on two cores the spinning engine core
took half of one from the worker that it waited for and from the process that answers clients.
"""

from __future__ import annotations

import time

import zmq
from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
from vllm.platforms import current_platform

# Notifications are lost where messages follow one another within some milliseconds: a PUB socket whose queue holds one
# message learns of its having been sent that late (libzmq looks for such news once a millisecond), and drops the next.
_LONGEST_SLEEP_MS = 1

_wait_when_idle = SpinCondition.wait


def wait_without_spinning() -> None:
    """Have this process sleep until a message comes, where the model runs on the CPU; idempotent."""
    if current_platform.is_cpu():
        SpinCondition.wait = _wait


def _wait(self: SpinCondition, timeout_ms: int | None = None) -> None:
    if time.monotonic() > self.last_read + self.busy_loop_s:
        _wait_when_idle(self, timeout_ms)
    elif self.local_notify_socket in dict(self.poller.poll(_LONGEST_SLEEP_MS)):
        self.local_notify_socket.recv(flags=zmq.NOBLOCK, copy=False)
