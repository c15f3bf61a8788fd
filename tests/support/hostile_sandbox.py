"""A sandbox whose jobs do what a path's last part says, run as a script: what a taken-over job could try.

Nothing of this can be reached through the protocol of the real one.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shadow_runtime.sandbox.job import JobContext, run_job
from shadow_runtime.sandbox.zygote import serve


def spin() -> None:
    while True:
        pass


def allocate() -> None:
    held = []
    while True:
        held.append(torch.ones(4 << 20))


def allocate_bytes() -> None:
    held = []
    while True:
        held.append(bytearray(1 << 20))


def leave_with(code: int) -> Callable[[], None]:
    return lambda: os._exit(code)


def refused(call: Callable[[], Any]) -> Callable[[], str]:
    """Return an action that says how `call` failed."""

    def action() -> str:
        try:
            call()
        except OSError as error:
            return f"refused: {os.strerror(error.errno or 0)}"
        return "done"

    return action


def fail() -> None:
    raise ValueError("a defect of ours")


ENDS: dict[str, Callable[[], Any]] = {
    "spin": spin,
    "sleep": lambda: time.sleep(1000),
    "allocate": allocate,
    "allocate bytes": allocate_bytes,
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "exit 0 without an answer": leave_with(0),
    "exit 1": leave_with(1),
    "raise": fail,
    "recurse": lambda: (lambda f: f(f))(lambda f: f(f)),
    "answer without end": lambda: "x" * (20 << 20),
}
"""Actions that never give a usable answer."""

REFUSED: dict[str, Callable[[], str]] = {
    "connect": refused(lambda: socket.create_connection(("127.0.0.1", 1))),
    "unix socket": refused(lambda: socket.socket(socket.AF_UNIX)),
    "execute": refused(lambda: os.execv("/bin/true", ["true"])),
    "fork": refused(os.fork),
    "write": refused(lambda: os.open("/tmp/x", os.O_WRONLY | os.O_CREAT)),
    "append": refused(lambda: os.open("/dev/null", os.O_RDWR)),
    "remove": refused(lambda: os.unlink("/tmp/nothing")),
    "rename": refused(lambda: os.rename("/tmp/nothing", "/tmp/nowhere")),
    # Signal 0 only asks: a filter that does not work must not cost anybody a process.
    "signal the zygote": refused(lambda: os.kill(os.getppid(), 0)),
    "signal itself": refused(lambda: os.kill(os.getpid(), 0)),
    "memory of others": refused(lambda: os.memfd_create("x")),
}
"""Actions that must fail with EPERM."""

SHOWN: dict[str, Callable[[], str]] = {
    "descriptors": lambda: ",".join(sorted(os.listdir("/proc/self/fd"))),
    "modules": lambda: ",".join(sys.modules),
    "nice": lambda: str(os.nice(0)),
    "dumpable": lambda: str(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)),
}
"""Actions that show what a job has."""


def try_to_overfill(output: int) -> str:
    """Fill the file that a job may write, by 64 KiB at a time, and say how it ended."""
    try:
        for _ in range(1 << 20):
            os.write(output, bytes(1 << 16))
    except OSError as error:
        return f"refused: {os.strerror(error.errno or 0)}"
    return "done"


WRITES: dict[str, Callable[[int], str]] = {
    "fill the disk": try_to_overfill,
    "reopen for reading and writing": lambda output: refused(
        lambda: os.open(f"/proc/self/fd/{output}", os.O_RDWR)
    )(),
}
"""Actions on the file that a job may write; they must fail."""


def hostile(request: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Do what the path says; anything else is an ordinary job."""
    path = Path(request["path"])
    if path.name in WRITES:
        message = WRITES[path.name](request["output"])
        return {"error_code": "adapter_invalid", "error_message": message}
    action = (ENDS | REFUSED | SHOWN).get(path.name)
    if action is None:
        return run_job(request, context)
    return {"error_code": "adapter_invalid", "error_message": action()}


if __name__ == "__main__":
    serve(hostile)
