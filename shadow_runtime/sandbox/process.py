"""The API process's hold on one zygote: starts it, hands it jobs, notices when it is gone.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import sys
from dataclasses import dataclass, field
from typing import Any

from shadow_runtime.errors import SandboxError

COMMAND = (
    sys.executable,
    *["-O"] * sys.flags.optimize,
    "-P",
    "-m",
    "shadow_runtime.sandbox.zygote",
)
_MAX_ANSWER_BYTES = 16 << 20
_MAX_MESSAGE_BYTES = 64 << 10
_READ_BYTES = 1 << 18
_EXIT_SECONDS = 5.0
# What the interpreter and its libraries need to be found; never a key or a token.
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")
_SET_VARIABLES = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "LC_ALL": "C.UTF-8",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_PLUGINS": "",
}


class ZygoteEndedError(SandboxError):
    """A zygote has ended, whoever ended it."""


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """How a job ended.

    Attributes:
        answer: what it wrote, None when that is not one JSON object.
        status: wait status of its process, -1 when it could not be forked.
    """

    answer: dict[str, Any] | None
    status: int

    @property
    def end(self) -> str:
        """How the process ended, for people."""
        if self.status < 0:
            return "could not be started"
        if os.WIFSIGNALED(self.status):
            return f"was ended by {signal.Signals(os.WTERMSIG(self.status)).name}"
        return f"ended with exit code {os.waitstatus_to_exitcode(self.status)}"


@dataclass(slots=True)
class _Running:
    """A job in flight: its process's status and its answer, in whichever order they come."""

    status: asyncio.Future[int]
    answer: asyncio.Future[bytes]
    received: bytearray = field(default_factory=bytearray)


class ZygoteProcess:
    """One zygote. Used by one event loop; `start` makes it, `close` ends it and all its jobs."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self._process = process
        self._control = control
        self._loop = asyncio.get_running_loop()
        self._running: dict[int, _Running] = {}
        self._numbers = itertools.count()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._is_gone = False
        self._loop.add_reader(control.fileno(), self._on_message)

    @classmethod
    async def start(cls, command: tuple[str, ...], context: dict[str, Any]) -> ZygoteProcess:
        """Start a zygote, which takes seconds to be ready; only `wait_until_ready` says whether it ever is."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *command,
                str(theirs.fileno()),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=_environment(),
                cwd="/",
                start_new_session=True,
            )
        zygote = cls(process, ours)
        try:
            await zygote._send_settings(context)
        except OSError:  # it has ended already, which is found when somebody waits for it
            pass
        except BaseException:
            await zygote.close()
            raise
        return zygote

    async def wait_until_ready(self, max_seconds: float) -> None:
        """Return when it takes jobs, from the second time on at once.

        Raises:
            ZygoteEndedError: it has ended.
            SandboxError: it is not ready within `max_seconds` from now.
        """
        try:
            async with asyncio.timeout(max_seconds):
                await asyncio.shield(self._ready)
        except TimeoutError as error:
            raise SandboxError(
                f"the process that validates adapters did not start within {max_seconds:g} s"
            ) from error

    @property
    def pid(self) -> int:
        """Process number of the zygote."""
        return self._process.pid

    @property
    def is_gone(self) -> bool:
        """Whether it has ended or was closed."""
        return self._is_gone

    async def run(self, request: dict[str, Any], output: int | None = None) -> JobOutcome:
        """Run one job to its end; a cancelled call ends the job.

        Args:
            request: see `job.run_job`.
            output: descriptor of the file that the job may write to.

        Raises:
            SandboxError: the zygote is gone.
        """
        number = next(self._numbers)
        job = _Running(self._loop.create_future(), self._loop.create_future())
        self._running[number] = job
        answer_end = self._send_job(number, request, output)
        self._loop.add_reader(answer_end, self._on_answer, answer_end, number)
        try:
            answer, status = await asyncio.gather(job.answer, job.status)
        finally:
            del self._running[number]
            self._loop.remove_reader(answer_end)
            os.close(answer_end)
            # Nothing happens to a job that has ended.
            self._send({"kill": number})
        return JobOutcome(_parse(answer), status)

    async def close(self) -> None:
        """End the zygote and its jobs, and wait until it is gone; the second call does nothing."""
        if self._control.fileno() >= 0:
            self._mark_gone()
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
        # Its jobs are killed by the kernel when it ends, however it ends.
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        async with asyncio.timeout(_EXIT_SECONDS):
            await self._process.wait()

    async def _send_settings(self, context: dict[str, Any]) -> None:
        settings = {"parent_pid": os.getpid(), "context": context}
        stdin = self._process.stdin
        if stdin is None:
            raise SandboxError("the process that validates adapters has no standard input")
        stdin.write(json.dumps(settings).encode())
        await stdin.drain()
        stdin.close()
        await stdin.wait_closed()

    def _send_job(self, number: int, request: dict[str, Any], output: int | None) -> int:
        """Hand over a job and the pipe for its answer; return the end that reads it."""
        if self._is_gone:
            raise SandboxError("the process that validates adapters has ended")
        answer_end, their_end = os.pipe()
        os.set_blocking(answer_end, False)
        message = json.dumps(request | {"job": number}).encode()
        try:
            outputs = [] if output is None else [output]
            socket.send_fds(self._control, [message], [their_end, *outputs])
        except OSError as error:
            os.close(answer_end)
            raise SandboxError(
                "the process that validates adapters does not take requests"
            ) from error
        finally:
            os.close(their_end)
        return answer_end

    def _send(self, message: dict[str, Any]) -> None:
        # A zygote that does not listen any more has no jobs either.
        with contextlib.suppress(OSError):
            self._control.send(json.dumps(message).encode())

    def _on_message(self) -> None:
        try:
            data = self._control.recv(_MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._mark_gone()
            self._loop.remove_reader(self._control.fileno())
            return
        message = json.loads(data)
        if "is_ready" in message:
            self._ready.set_result(None)
        elif (job := self._running.get(message["job"])) and not job.status.done():
            job.status.set_result(message["status"])

    def _on_answer(self, answer_end: int, number: int) -> None:
        job = self._running[number]
        try:
            data = os.read(answer_end, _READ_BYTES)
        except BlockingIOError:
            return
        job.received += data
        is_too_long = len(job.received) > _MAX_ANSWER_BYTES
        if is_too_long:
            self._send({"kill": number})
        if is_too_long or not data:
            self._loop.remove_reader(answer_end)
            if not job.answer.done():
                job.answer.set_result(bytes(job.received))

    def _mark_gone(self) -> None:
        self._is_gone = True
        waiting = [future for job in self._running.values() for future in (job.status, job.answer)]
        for future in (self._ready, *waiting):
            if not future.done():
                future.set_exception(
                    ZygoteEndedError("the process that validates adapters has ended")
                )
                # Whoever waits for the other future of a job never asks this one.
                future.exception()


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return kept | _SET_VARIABLES


def _parse(answer: bytes) -> dict[str, Any] | None:
    if len(answer) > _MAX_ANSWER_BYTES:
        return None
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
