"""Many streaming clients in one cheap process of their own, which time every arrival and parse nothing until the end.

    python tests/support/load_client.py PLAN.json RESULT.json

A plan names groups of clients and when each group is active. Times are seconds of the machine's monotonic clock, which
all its processes share, so that whoever starts this process can compare them with its own. A client of a closed group
asks again when its answer has ended. An open group (`rate`) starts requests at fixed instants whatever the answers do.
"""

from __future__ import annotations

import array
import asyncio
import gc
import itertools
import json
import math
import os
import random
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_TEXT = re.compile(rb'"text":"([^"]*)"')
_WORD = re.compile(rb"w(\d+)")
_FINISH = re.compile(rb'"finish_reason":"(\w+)"')
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_DRAIN_SECONDS = 60.0


@dataclass
class Group:
    """Clients that ask alike.

    Attributes:
        name: of the group in the results.
        bodies: request bodies, taken in turn; each client starts at another one.
        num_clients: of a closed group; of an open one, the most requests under way, beyond which a start is skipped.
        active: windows (start, end) in which requests are started.
        rate: requests a second of an open group; None for a closed one.
        headers: sent with every request.
        path: of the route.
        pause_seconds: how long a client of a closed group waits after each answer.
        fresh_tokens: (first, end) of the token ids of which every request's prompt, a list of ids, is made anew behind
            its first one, so that no prefix cache knows it; None sends bodies as they are.
    """

    name: str
    bodies: list[dict[str, Any]]
    num_clients: int
    active: list[tuple[float, float]]
    rate: float | None = None
    headers: dict[str, str] = field(default_factory=dict)
    path: str = "/v1/completions"
    pause_seconds: float = 0.0
    fresh_tokens: tuple[int, int] | None = None


@dataclass
class Plan:
    """What to ask of the server at `host`:`port`."""

    host: str
    port: int
    groups: list[Group]


@dataclass
class Record:
    """One request and its answer.

    Attributes:
        group: that it belongs to.
        asked: the adapter that its body names, None for the base.
        sent_at, first_at, ended_at: instants; `first_at` of the first byte after the headers.
        status: HTTP status, 0 when the connection failed.
        headers: those of the answer that begin with `x-` or name a retry.
        said: runs (token, count) of a streamed answer of words `w<token>`.
        finish: the last finish reason.
        error: what went wrong, or the body of a refusal.
    """

    group: str
    asked: str | None
    sent_at: float
    first_at: float = 0.0
    ended_at: float = 0.0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    said: list[tuple[int, int]] = field(default_factory=list)
    finish: str | None = None
    error: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole: status 200, no error, ended by its own reason."""
        return self.status == 200 and self.error is None and self.finish in ("length", "stop")

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer."""
        return sum(count for _, count in self.said)


@dataclass
class Report:
    """What a run has seen.

    Attributes:
        records: one per request, in order of their end.
        gaps: by group, (instant of an arrival, seconds since the stream's previous one).
        cpu_seconds, wall_seconds: what the clients' process took.
        is_punctual: whether it ran ahead of other processes; without it a full machine delays what it sees.
        num_skipped: starts of open groups that were skipped.
    """

    records: list[Record]
    gaps: dict[str, list[tuple[float, float]]]
    cpu_seconds: float
    wall_seconds: float
    num_skipped: int
    is_punctual: bool = False

    def of(self, *groups: str) -> list[Record]:
        """Return the groups' records."""
        return [record for record in self.records if record.group in groups]


class _Answer(asyncio.Protocol):
    """One keep-alive connection; times each arrival and keeps the bytes."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._arrivals = array.array("d")
        self._body_start = -1
        self._length: int | None = None
        self._done: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._end(ConnectionError(f"the connection was closed: {exc}"))

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes) -> asyncio.Future[None]:
        """Send a request; the future is done when the whole answer is there."""
        self._data.clear()
        self._arrivals = array.array("d")
        self._body_start, self._length = -1, None
        self._done = asyncio.get_running_loop().create_future()
        if self._transport is None:
            raise ConnectionError("not connected")
        self._transport.write(request)
        return self._done

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self._data += data
        if self._body_start < 0:
            self._read_head()
            if self._body_start < 0 or self._body_start == len(self._data):
                return
        self._arrivals.append(now)
        if self._is_whole():
            self._end(None)

    def _read_head(self) -> None:
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return
        self._body_start = end + 4
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", self._data[:end])
        self._length = int(length[1]) if length else None

    def _is_whole(self) -> bool:
        if self._length is not None:
            return len(self._data) - self._body_start >= self._length
        return self._data.endswith(_LAST_CHUNK)

    def _end(self, error: Exception | None) -> None:
        if self._done is None or self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def head(self) -> tuple[int, dict[str, str]]:
        """Return status and lower-case headers."""
        first, *lines = bytes(self._data[: self._body_start - 4]).decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in lines)
        return int(first.split(" ")[1]), {name.lower(): value for name, _, value in pairs}

    def body(self) -> tuple[bytes, array.array[float]]:
        """Return the answer as it came, chunk sizes and all, and the instants at which something of it came."""
        return bytes(self._data[self._body_start :]), self._arrivals


class _Load:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._records: list[Record] = []
        self._gaps: dict[str, list[tuple[float, float]]] = {g.name: [] for g in plan.groups}
        self._num_skipped = 0
        self._idle: list[_Answer] = []

    async def run(self) -> Report:
        started_at = time.monotonic()
        runs = (
            self._run_closed(g) if g.rate is None else self._run_open(g) for g in self._plan.groups
        )
        await asyncio.gather(*runs)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        wall = time.monotonic() - started_at
        cpu = usage.ru_utime + usage.ru_stime
        return Report(self._records, self._gaps, cpu, wall, self._num_skipped)

    async def _run_closed(self, group: Group) -> None:
        await asyncio.gather(*(self._client(group, index) for index in range(group.num_clients)))

    async def _client(self, group: Group, index: int) -> None:
        requests = _requests(self._plan, group, index)
        for start, end in group.active:
            # Spread the first requests, so that the answers do not end all at once for ever.
            at = start + min(max(1.0, group.pause_seconds), end - start) * index / group.num_clients
            while at < end:
                await _sleep_until(at)
                await self._ask(group, *next(requests))
                at = time.monotonic() + group.pause_seconds

    async def _run_open(self, group: Group) -> None:
        assert group.rate is not None
        requests = _requests(self._plan, group, 0)
        running: set[asyncio.Task[None]] = set()
        for start, end in group.active:
            for count in itertools.count():
                at = start + count / group.rate
                if at >= end:
                    break
                await _sleep_until(at)
                if len(running) >= group.num_clients:
                    self._num_skipped += 1
                    continue
                task = asyncio.create_task(self._ask(group, *next(requests)))
                running.add(task)
                task.add_done_callback(running.discard)
        await asyncio.gather(*running)

    async def _ask(self, group: Group, asked: str | None, request: bytes) -> None:
        record = Record(group.name, asked, time.monotonic())
        connection: _Answer | None = None
        try:
            connection = await self._connect()
            record.sent_at = time.monotonic()
            async with asyncio.timeout(_DRAIN_SECONDS):
                await connection.send(request)
            self._read(record, connection, group.name)
            # One that the server has closed is passed over when it is taken out again.
            self._idle.append(connection)
        except (OSError, TimeoutError) as error:
            record.error = f"{type(error).__name__}: {error}"
            if connection is not None:
                connection.close()
        record.ended_at = time.monotonic()
        self._records.append(record)

    async def _connect(self) -> _Answer:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Answer, self._plan.host, self._plan.port)
        return connection

    def _read(self, record: Record, answer: _Answer, group: str) -> None:
        body, arrivals = answer.body()
        record.status, headers = answer.head()
        kept = ("x-", "retry-after")
        record.headers = {name: value for name, value in headers.items() if name.startswith(kept)}
        if arrivals:
            record.first_at = arrivals[0]
        if record.status != 200:
            record.error = body[:400].decode(errors="replace")
            return
        record.said, record.finish = _said(body), _last(_FINISH, body)
        if b'"error"' in body:
            record.error = body[-400:].decode(errors="replace")
        self._gaps[group] += [(later, later - earlier) for earlier, later in _pairs(arrivals)]


def _pairs(values: Sequence[float]) -> Iterator[tuple[float, float]]:
    return itertools.pairwise(values)


def _said(body: bytes) -> list[tuple[int, int]]:
    words = (int(word) for text in _TEXT.findall(body) for word in _WORD.findall(text))
    return [(token, sum(1 for _ in run)) for token, run in itertools.groupby(words)]


def _last(pattern: re.Pattern[bytes], body: bytes) -> str | None:
    found = pattern.findall(body)
    return found[-1].decode() if found else None


def _requests(plan: Plan, group: Group, start: int) -> Iterator[tuple[str | None, bytes]]:
    """Yield the group's requests for ever, from body number `start` on."""
    if group.fresh_tokens is not None:
        yield from _fresh_requests(plan, group, start, range(*group.fresh_tokens))
    ready = [(body.get("adapter"), _request(plan, group, body)) for body in group.bodies]
    for number in itertools.count(start):
        yield ready[number % len(ready)]


def _fresh_requests(
    plan: Plan, group: Group, start: int, tokens: range
) -> Iterator[tuple[str | None, bytes]]:
    draw = random.Random(f"{group.name} {start}")
    for number in itertools.count(start):
        body = group.bodies[number % len(group.bodies)]
        first, *rest = body["prompt"]
        prompt = [first, *draw.choices(tokens, k=len(rest))]
        yield body.get("adapter"), _request(plan, group, {**body, "prompt": prompt})


def _request(plan: Plan, group: Group, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    fields = {
        "host": f"{plan.host}:{plan.port}",
        "content-type": "application/json",
        "content-length": str(len(data)),
        **group.headers,
    }
    lines = [f"POST {group.path} HTTP/1.1", *(f"{name}: {text}" for name, text in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data


async def _sleep_until(instant: float) -> None:
    await asyncio.sleep(max(0.0, instant - time.monotonic()))


def quantile(values: Sequence[float], part: float) -> float:
    """Return the smallest of the sorted values that `part` of them do not exceed."""
    return values[max(0, math.ceil(part * len(values)) - 1)]


@contextmanager
def started_load(plan: Plan, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start the clients in a process of their own; `finish_load` with the same directory waits for it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "plan.json").write_text(json.dumps(asdict(plan)))
    words = [sys.executable, __file__, str(directory / "plan.json"), str(directory / "result.json")]
    with subprocess.Popen(words) as process:
        try:
            yield process
        finally:
            process.kill()


def finish_load(
    process: subprocess.Popen[bytes], directory: Path, timeout_seconds: float
) -> Report:
    """Wait until all answers have ended and return what was seen."""
    status = process.wait(timeout_seconds)
    if status != 0:
        raise RuntimeError(f"the clients' process ended with status {status}")
    fields = json.loads((directory / "result.json").read_text())
    fields["records"] = [Record(**record) for record in fields["records"]]
    return Report(**fields)


def _be_punctual() -> bool:
    """Ask to run whenever something arrives; returns whether that was granted.

    A full machine was seen to keep this process off its cores for 0.6 s: every stream of a server in time stalls then.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        return False
    return True


def main() -> None:
    """Run the plan of the command line."""
    # A collection over a million kept gaps would look like a stall of every stream.
    gc.disable()
    is_punctual = _be_punctual()
    plan_path, result_path = (Path(word) for word in sys.argv[1:])
    fields = json.loads(plan_path.read_text())
    plan = Plan(**{**fields, "groups": [Group(**group) for group in fields["groups"]]})
    report = asyncio.run(_Load(plan).run())
    report.is_punctual = is_punctual
    result_path.write_text(json.dumps(asdict(report)))


if __name__ == "__main__":
    main()
