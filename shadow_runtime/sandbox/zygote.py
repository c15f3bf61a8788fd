"""The sandbox's long-lived process: imports everything once, parses nothing untrusted, forks a job for each request.

Runs in: the sandbox's own processes. Started as `python -m shadow_runtime.sandbox.zygote <control descriptor>` with the
settings as JSON on standard input. Single-threaded, so that a fork never inherits a lock that another thread holds.

Messages on the control socket (SOCK_SEQPACKET, one JSON object each):

    to the zygote     {"job": 7, ...: see `job.run_job`}   with the answer's pipe and, if it writes one, the file
                      {"kill": 7}
    from the zygote   {"is_ready": true}
                      {"job": 7, "status": <wait status, or -1 when it could not fork>}
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from shadow_runtime.artifact.backbone_spec import FAMILIES, normalize_config
from shadow_runtime.sandbox.confinement import close_other_descriptors, confine, die_with_parent
from shadow_runtime.sandbox.job import JobContext, is_out_of_memory, run_job

MAX_MESSAGE_BYTES = 64 << 10
_DEFECT_STATUS = 70
_HIDDEN_PACKAGES = ("pandas", "pyarrow", "scipy", "sklearn")

Job = Callable[[dict[str, Any], JobContext], dict[str, Any]]


def serve(job: Job = run_job) -> None:
    """Read the settings and answer requests until the other end of the control socket is closed."""
    settings = json.load(sys.stdin)
    die_with_parent(settings["parent_pid"])
    control = socket.socket(fileno=int(sys.argv[1]))
    torch.set_num_threads(1)
    _hide_optional_packages()
    for family in FAMILIES:
        # Config classes are imported when they are first used; a job would do it again each time.
        normalize_config(family, {})
    gc.collect()
    gc.freeze()
    control.send(json.dumps({"is_ready": True}).encode())
    _Zygote(control, JobContext.from_dict(settings["context"]), job).run()


def _hide_optional_packages() -> None:
    """Let transformers believe that what configs have no use for is not installed.

    It imports scikit-learn where that is, which imports pyarrow, whose allocator starts a thread.
    """
    for name in _HIDDEN_PACKAGES:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


class _Zygote:
    def __init__(self, control: socket.socket, context: JobContext, job: Job) -> None:
        self._control = control
        self._context = context
        self._job = job
        self._jobs: dict[int, int] = {}
        self._pid = os.getpid()
        self._wakeup, wakeup_writer = os.pipe()
        for end in (self._wakeup, wakeup_writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wakeup_writer)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._wakeup in ready:
                os.read(self._wakeup, 4096)
                self._reap()
            if self._control.fileno() in ready and not self._take_message():
                break
        for pid in self._jobs.values():
            os.kill(pid, signal.SIGKILL)

    def _take_message(self) -> bool:
        """Act on one message; False when there will be no more."""
        data, descriptors, _, _ = socket.recv_fds(self._control, MAX_MESSAGE_BYTES, 2)
        if not data:
            return False
        message = json.loads(data)
        if "kill" in message:
            # Only a job that was not reaped still has its process number.
            if message["kill"] in self._jobs:
                os.kill(self._jobs[message["kill"]], signal.SIGKILL)
            return True
        self._start(message, *descriptors)
        return True

    def _start(self, message: dict[str, Any], answer: int, output: int | None = None) -> None:
        try:
            pid = os.fork()
        except OSError:
            self._tell(message["job"], -1)
        else:
            if pid == 0:
                self._become_job(message, answer, output)
            self._jobs[message["job"]] = pid
        finally:
            os.close(answer)
            if output is not None:
                os.close(output)

    def _reap(self) -> None:
        while self._jobs:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            number = next(number for number, other in self._jobs.items() if other == pid)
            del self._jobs[number]
            self._tell(number, status)

    def _tell(self, number: int, status: int) -> None:
        self._control.send(json.dumps({"job": number, "status": status}).encode())

    def _become_job(self, request: dict[str, Any], answer: int, output: int | None) -> NoReturn:
        """Run in the fork: nothing returns from here, and nothing is cleaned up that belongs to the zygote."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            die_with_parent(self._pid)
            close_other_descriptors([answer] if output is None else [answer, output])
            # The parent's clock is the bound; this one holds if the parent is gone or stuck.
            max_cpu_seconds = int(self._context.max_seconds) + 2
            max_bytes = request["max_canonical_bytes"]
            confine(self._context.max_memory_bytes, max_cpu_seconds, max_bytes)
            request["output"] = output
            _write_all(answer, json.dumps(self._job(request, self._context)).encode())
            os._exit(0)
        except BaseException as error:  # whatever it is, this fork ends here
            is_memory = is_out_of_memory(error)
            failure = {"defect": type(error).__name__, "is_out_of_memory": is_memory}
            _write_all(answer, json.dumps(failure).encode())
            os._exit(_DEFECT_STATUS)


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


if __name__ == "__main__":
    serve()
