"""Streams over real sockets: leaving early closes the connection, and a broken one is told."""

import asyncio
import json
import socket
import threading

import pytest

from shadow_client import (
    ApiError,
    AsyncClient,
    Client,
    ConnectionFailedError,
    StreamInterruptedError,
)
from shadow_client.event import Event, EventReader

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
CHUNK = {"id": "1", "model": "m", "created": 0, "choices": [{"index": 0, "text": "word "}]}
EVENT = b"data: " + json.dumps(CHUNK).encode() + b"\n\n"


class OneStream:
    """A server that sends `content` to its one client and then waits for it to leave, unless it hangs up itself."""

    def __init__(self, content, hangs_up=False, length=None):
        self.has_left = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        ending = b"connection: close\r\n\r\n"
        if length is not None:
            ending = f"content-length: {length}\r\n\r\n".encode()
        self._thread = threading.Thread(
            target=self._serve, args=(HEAD + ending + content, hangs_up)
        )

    def _serve(self, content, hangs_up):
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(20)
            connection.recv(1 << 16)
            connection.sendall(content)
            if hangs_up:
                # Not closed yet: what is left unread of the request would make that a reset.
                connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass
        self.has_left.set()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._thread.join(20)
        self._listener.close()


def test_the_end_of_a_with_closes_the_connection():
    with OneStream(EVENT * 2) as server, Client(server.url) as client:
        with client.completions.stream("hi") as stream:
            assert next(stream).text == "word "
            assert not server.has_left.is_set()
        assert server.has_left.wait(10)


def test_a_break_closes_the_connection():
    with OneStream(EVENT * 2) as server, Client(server.url) as client:
        for chunk in client.completions.stream("hi"):
            assert chunk.text == "word "
            break
        assert server.has_left.wait(10)


def test_a_stream_that_nobody_reads_is_closed_too():
    with OneStream(EVENT) as server, Client(server.url) as client:
        client.completions.stream("hi").close()
        assert server.has_left.wait(10)


def test_a_stream_that_is_dropped_unread_is_closed_too():
    with OneStream(EVENT) as server, Client(server.url) as client:
        client.completions.stream("hi")
        assert server.has_left.wait(10)


async def test_the_end_of_an_async_with_closes_the_connection():
    with OneStream(EVENT * 2) as server:
        async with AsyncClient(server.url) as client:
            async with await client.completions.stream("hi") as stream:
                assert (await anext(stream)).text == "word "
            assert await asyncio.to_thread(server.has_left.wait, 10)


async def test_a_cancelled_task_closes_the_connection():
    with OneStream(EVENT) as server:
        async with AsyncClient(server.url) as client:
            began = asyncio.Event()

            async def read():
                async with await client.completions.stream("hi") as stream:
                    async for _ in stream:
                        began.set()

            task = asyncio.create_task(read())
            await began.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(server.has_left.wait, 10)


def read_all(content, **options):
    texts = []
    with OneStream(content, hangs_up=True, **options) as server, Client(server.url) as client:
        try:
            with client.completions.stream("hi") as stream:
                texts.extend(chunk.text for chunk in stream)
        except Exception as error:
            return texts, error
    return texts, None


def test_an_end_without_its_mark_is_no_end():
    texts, error = read_all(EVENT)
    assert texts == ["word "]
    assert isinstance(error, StreamInterruptedError)


def test_a_broken_connection_is_told():
    texts, error = read_all(EVENT, length=9999)
    assert texts == ["word "]
    assert isinstance(error, ConnectionFailedError)


def test_an_error_inside_a_stream_is_raised():
    body = {"error": {"message": "no", "type": "x", "param": None, "code": "adapter_failed"}}
    failing = EVENT + b"data: " + json.dumps(body).encode() + b"\n\ndata: [DONE]\n\n"
    texts, error = read_all(failing)
    assert texts == ["word "]
    assert isinstance(error, ApiError)
    assert (error.status, error.code) == (503, "adapter_failed")


def test_line_separators_in_a_text_end_no_line():
    text = "a\u2028b\u2029c\x85d\x0be\x1cf"
    chunk = CHUNK | {"choices": [{"index": 0, "text": text}]}
    data = json.dumps(chunk, ensure_ascii=False).encode()
    assert read_all(b"data: " + data + b"\n\ndata: [DONE]\n\n") == ([text], None)


def test_a_text_that_says_error_is_no_error():
    chunk = CHUNK | {"choices": [{"index": 0, "text": '{"error": 1}'}]}
    content = b"data: " + json.dumps(chunk).encode() + b"\n\ndata: [DONE]\n\n"
    assert read_all(content) == (['{"error": 1}'], None)


@pytest.mark.parametrize(
    ("lines", "events"),
    [
        (["data: a", ""], [Event("message", "a")]),
        (
            ["event: x", "data:a", "data: b", "", "data: c", ""],
            [Event("x", "a\nb"), Event("message", "c")],
        ),
        ([": comment", "", "id: 1", "retry: 5", ""], []),
        (["event: x", "", "data: a", ""], [Event("message", "a")]),
        (["data: a"], []),
    ],
)
def test_events(lines, events):
    assert EventReader().feed("".join(f"{line}\n" for line in lines).encode()) == events


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_events_in_any_cut(end, size):
    content = f"data: ä\u2028{end}{end}event: x{end}data: b{end}data: {end}{end}:{end}".encode()
    reader = EventReader()
    cuts = [content[at : at + size] for at in range(0, len(content), size)]
    found = [event for cut in cuts for event in reader.feed(cut)]
    assert found == [Event("message", "ä\u2028"), Event("x", "b\n")]
