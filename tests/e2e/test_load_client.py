"""The load generator tells whole answers from broken ones, times every arrival and keeps to its windows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from load_client import Group, Plan, Report, finish_load, started_load

PAUSE = 0.03
NUM_EVENTS = 4
HEAD = b"HTTP/1.1 200 OK\r\nX-Shadow-Adapter-Version: 7\r\ntransfer-encoding: chunked\r\n\r\n"
REFUSAL = b"HTTP/1.1 429 Too Many\r\nretry-after: 3\r\nContent-Length: 7\r\n\r\nno more"


def event(token: int, finish: str = "null") -> bytes:
    data = f'data: {{"choices":[{{"text":" w{token}","finish_reason":{finish}}}]}}\n\n'.encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Stream tokens 5 5 5 5, or fail as the body's `adapter` asks."""
    while head := await _read_head(reader, writer):
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        if b'"refused"' in body:
            writer.write(REFUSAL)
            continue
        writer.write(HEAD)
        for index in range(NUM_EVENTS):
            await asyncio.sleep(PAUSE)
            is_last = index == NUM_EVENTS - 1
            token = 6 if b'"mix"' in body and is_last else 5
            if b'"cut"' in body and is_last:
                writer.close()
                return
            if b'"failing"' in body and is_last:
                writer.write(b'17\r\ndata: {"error":{"x":1}}\n\r\n')
                break
            is_named = is_last and b'"endless"' not in body
            writer.write(event(token, '"length"' if is_named else "null"))
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


async def _read_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
        return b""


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def run(port: int, directory: Path, *groups: Group) -> Report:
    with started_load(Plan("127.0.0.1", port, list(groups)), directory) as process:
        return await asyncio.to_thread(finish_load, process, directory, 30)


def window(seconds: float, delay: float = 1.0) -> tuple[float, float]:
    start = time.monotonic() + delay
    return start, start + seconds


async def test_whole_answers_are_told_from_broken_ones(port: int, tmp_path: Path) -> None:
    kinds = ("whole", "mix", "refused", "cut", "failing", "endless")
    active = [window(0.5)]
    groups = [Group(kind, [{"adapter": kind, "stream": True}], 2, active) for kind in kinds]
    report = await run(port, tmp_path, *groups)
    first = {kind: report.of(kind)[0] for kind in kinds}
    assert all(len(report.of(kind)) >= 4 for kind in kinds)
    assert first["whole"].is_complete
    assert first["whole"].said == [[5, NUM_EVENTS]]
    assert first["whole"].headers == {"x-shadow-adapter-version": "7"}
    assert first["mix"].said == [[5, NUM_EVENTS - 1], [6, 1]]
    refused = first["refused"]
    assert (refused.status, refused.error, refused.is_complete) == (429, "no more", False)
    assert refused.headers == {"retry-after": "3"}
    assert not first["cut"].is_complete
    assert "closed" in first["cut"].error
    assert not first["failing"].is_complete
    assert (first["endless"].error, first["endless"].is_complete) == (None, False)


async def test_gaps_are_those_of_the_stream(port: int, tmp_path: Path) -> None:
    report = await run(port, tmp_path, Group("a", [{"adapter": None}], 1, [window(0.6)]))
    gaps = [gap for _, gap in report.gaps["a"]]
    records = report.of("a")
    assert len(gaps) >= len(records) * (NUM_EVENTS - 1)
    # The end of an answer comes with its last event or right after it.
    assert sum(gap > PAUSE / 2 for gap in gaps) == len(records) * (NUM_EVENTS - 1)
    assert all(r.sent_at + PAUSE / 2 < r.first_at < r.ended_at for r in records)


async def test_nothing_is_started_outside_the_windows(port: int, tmp_path: Path) -> None:
    start, end = window(0.3)
    windows = [(start, end), (end + 0.4, end + 0.7)]
    closed = Group("closed", [{}], 3, windows)
    opened = Group("open", [{}], 10, windows, rate=20)
    report = await run(port, tmp_path, closed, opened)
    for record in report.records:
        assert any(a <= record.sent_at < b + 0.1 for a, b in windows)
    # 20 a second for 0.6 s; the first and the last moment of each window may both fall into it.
    assert 10 <= len(report.of("open")) + report.num_skipped <= 12 + len(windows)
    assert len(report.of("closed")) >= 6


async def test_a_client_pauses_after_each_answer(port: int, tmp_path: Path) -> None:
    group = Group("slow", [{}], 4, [window(1.2)], pause_seconds=0.4)
    instants = sorted(r.sent_at for r in (await run(port, tmp_path, group)).records)
    # An answer takes 0.12 s: three turns of four clients, which do not ask all at once.
    assert 8 <= len(instants) <= 12
    assert instants[3] - instants[0] > 0.2
