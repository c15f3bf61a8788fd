"""What a job gives up before it reads its first untrusted byte.

Runs in: the sandbox's own processes. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Collection

from shadow_runtime.sandbox.syscall_filter import install_filter

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_MAX_OPEN_FILES = 64
_NICENESS = 10


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends, however that ends; exit now if it has already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def confine(max_memory_bytes: int, max_cpu_seconds: int, max_file_bytes: int = 0) -> None:
    """Give up memory, time, files, privileges and system calls, for good.

    Args:
        max_memory_bytes: address space beyond what this process has mapped already.
        max_cpu_seconds: processor time from the process's start.
        max_file_bytes: how large a file may become that was open for writing before; none can be opened so.
    """
    _be_the_first_to_go()
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    for kind, limit in _limits(max_memory_bytes, max_cpu_seconds, max_file_bytes):
        resource.setrlimit(kind, (limit, limit))
    install_filter()


def close_other_descriptors(kept: Collection[int]) -> None:
    """Close everything but standard streams, which lead nowhere afterwards, and `kept`."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    first = 3
    for descriptor in sorted(kept):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _limits(
    max_memory_bytes: int, max_cpu_seconds: int, max_file_bytes: int
) -> list[tuple[int, int]]:
    return [
        (resource.RLIMIT_AS, _mapped_bytes() + max_memory_bytes),
        (resource.RLIMIT_CPU, max_cpu_seconds),
        (resource.RLIMIT_FSIZE, max_file_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
        # Not enforced for root, whom the filter keeps from forking.
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ]


def _be_the_first_to_go() -> None:
    """Leave processor and memory to the engine where there is too little of them."""
    os.nice(_NICENESS)
    # Where /proc is not writable the kernel chooses whom it kills by size, as everywhere.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _mapped_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option} failed: {os.strerror(number)}")


if sys.platform != "linux":  # pragma: no cover
    raise ImportError("the sandbox needs Linux")
