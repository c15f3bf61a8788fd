"""A sandbox whose jobs are hostile, and looks at the processes that it is made of."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import hostile_sandbox
from shadow_runtime.sandbox import SandboxValidator

WAIT_SECONDS = 30.0


class HostileSandbox(SandboxValidator):
    """A validator whose jobs do what `hostile_sandbox` says; ordinary paths are ordinary jobs."""

    _command = (
        sys.executable,
        *["-O"] * sys.flags.optimize,
        "-P",
        str(Path(hostile_sandbox.__file__)),
    )

    @property
    def zygote_pid(self) -> int:
        """Process number of the zygote, 0 while there is none."""
        return 0 if self._zygote is None else self._zygote.pid


async def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what other processes do; raises TimeoutError after half a minute."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110 - nothing tells when another process changes
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


def children_of(pid: int) -> list[int]:
    """Return the children of a process's main thread, zombies included."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def num_descriptors(pid: int) -> int:
    """Return how many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def num_threads(pid: int) -> int:
    """Return how many threads a process has."""
    return len(os.listdir(f"/proc/{pid}/task"))


def anonymous_bytes(pid: int) -> int:
    """Return the memory of a process that no file backs."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("RssAnon")]
    return int(line.split()[1]) << 10


def environment_of(pid: int) -> list[bytes]:
    """Return the variables that a process was started with."""
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
