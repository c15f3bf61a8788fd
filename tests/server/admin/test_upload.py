"""Uploads: multipart/form-data onto the disk, bounded in every direction."""

import asyncio
import tracemalloc

import httpx
import pytest

from fake_server import error_of, until
from shadow_server.admin import upload
from shadow_server.errors import ApiError

BOUNDARY = b"----b0undary"
TYPE = {"content-type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}


def part(name, data=b"x", filename=None, extra=b""):
    disposition = f'Content-Disposition: form-data; name="{name}"'
    if filename is not None:
        disposition += f'; filename="{filename}"'
    return (
        b"--"
        + BOUNDARY
        + b"\r\n"
        + disposition.encode()
        + b"\r\n"
        + extra
        + b"\r\n"
        + data
        + b"\r\n"
    )


END = b"--" + BOUNDARY + b"--\r\n"
FILE = part("files", b"weights", "adapter.txt")
NAME = part("name", b"math")


async def post(server, content, path="/v1/adapters", headers=TYPE):
    return await server.client.post(path, content=content, headers=headers)


async def test_an_upload_is_published(server):
    files = {"files": ("adapter.txt", b"weights")}
    answer = await server.client.post("/v1/adapters", data={"name": "math"}, files=files)
    assert answer.status_code == 201
    card = answer.json()
    assert (card["source"], card["path"], card["stored_bytes"]) == ("upload", None, 7)
    assert (await server.complete(adapter="math")).status_code == 200
    again = await post(server, FILE + NAME + END)
    assert (again.status_code, again.json()["digest"]) == (200, card["digest"])
    path = server.write_adapter("same", "weights")
    same = await server.client.post("/v1/adapters", json={"name": "same", "path": path})
    assert same.json()["digest"] == card["digest"]


@pytest.mark.parametrize("filename", ["narrow.json", None])
async def test_an_upload_may_bring_a_backbone_config(server, tmp_path, filename):
    config = part("backbone_config", b' {"explicit": 1}', filename)
    answer = await post(server, config + FILE + NAME + END)
    assert answer.status_code == 201
    assert answer.json()["stored_bytes"] == 7 + 16
    (kept,) = (tmp_path / "state").rglob("backbone_config.json")
    assert kept.read_bytes() == b' {"explicit": 1}'
    report = await post(server, config + FILE + END, path="/v1/adapters/validate")
    assert (report.status_code, report.json()["is_valid"]) == (200, True)


async def test_an_upload_may_wait_stream_and_replace(server):
    answer = await post(server, NAME + part("wait", b"false") + FILE + END)
    assert answer.status_code == 202
    fields = NAME + part("stream", b"true")
    answer = await post(server, fields + part("files", b"two", "adapter.txt") + END)
    assert answer.status_code == 200
    first, *_, last, done, _ = answer.text.split("\n\n")
    assert first == 'event: reading\ndata: {"num_bytes": 3, "total_bytes": 3}'
    assert last.startswith("event: published\n")
    assert done == "data: [DONE]"
    fields = NAME + part("can_replace", b"false")
    answer = await post(server, fields + part("files", b"three", "adapter.txt") + END)
    assert answer.status_code == 409


async def test_an_upload_is_never_whole_in_memory_and_may_come_in_any_pieces(server):
    size = 2_500_000

    async def body():
        head, _, tail = part("files", b"?", "adapter.txt").partition(b"?")
        yield NAME + head
        for _ in range(size // 5000):
            yield b"w" * 5000
        for i in range(len(tail + END)):
            yield (tail + END)[i : i + 1]

    tracemalloc.start()
    try:
        answer = await server.client.post("/v1/adapters/validate", content=body(), headers=TYPE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status_code == 400  # /validate takes no name: nothing but the upload was done
    answer = await server.client.post("/v1/adapters", content=body(), headers=TYPE)
    assert answer.status_code == 201
    assert answer.json()["stored_bytes"] == size
    assert peak < 1_500_000


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "invalid_multipart"),
        (b"junk", 400, "invalid_multipart"),
        (NAME + FILE, 400, "invalid_multipart"),
        (NAME + FILE[:-20], 400, "invalid_multipart"),
        (NAME + END, 400, "invalid_multipart"),
        (END, 400, "invalid_multipart"),
        (FILE + END, 400, "invalid_request"),
        (NAME + NAME + FILE + END, 400, "invalid_multipart"),
        (NAME + FILE + FILE + END, 422, "adapter_file_invalid"),
        (NAME + part("extra") + FILE + END, 400, "invalid_request"),
        (NAME + part("backbone_config", b"{}", "b.json") + END, 400, "invalid_multipart"),
        (
            NAME + 2 * part("backbone_config", b"{}", "b.json") + FILE + END,
            422,
            "adapter_file_invalid",
        ),
        (NAME + part("wait", b"perhaps") + FILE + END, 400, "invalid_request"),
        (part("name", b"..") + FILE + END, 400, "adapter_name_invalid"),
        (part("name", b"\xff") + FILE + END, 400, "invalid_multipart"),
        (part("name", b"m" * 5000) + FILE + END, 400, "invalid_multipart"),
        (NAME + part("files", b"x", "other.txt") + END, 422, "adapter_file_invalid"),
        (NAME + part("files", b"x", "../adapter.txt") + END, 422, "adapter_file_invalid"),
        (NAME + part("files", b"x", "/etc/adapter.txt") + END, 422, "adapter_file_invalid"),
        (NAME + part("files", b"x", "a/adapter.txt") + END, 422, "adapter_file_invalid"),
        (NAME + part("files", b"x", "adapter.txt\\0") + END, 422, "adapter_file_invalid"),
        (NAME + part("files", b"x", "") + END, 422, "adapter_file_invalid"),
        (NAME + part("files", b"x", "adapter_model.bin") + END, 422, "adapter_file_invalid"),
        (NAME + part("files", b"x", "n" * 600) + END, 422, "adapter_file_invalid"),
        (NAME + part("files", b"x", "n" * 2000) + END, 400, "invalid_multipart"),
        (NAME + part("", b"x", "adapter.txt") + END, 400, "invalid_multipart"),
        (NAME + b"--" + BOUNDARY + b"\r\n\r\nx\r\n" + END, 400, "invalid_multipart"),
        (
            NAME + FILE + b"".join(part(f"f{i}") for i in range(40)) + END,
            400,
            "invalid_multipart",
        ),
        (
            NAME
            + part("files", b"x", "adapter.txt", b"Content-Transfer-Encoding: base64\r\n")
            + END,
            400,
            "invalid_multipart",
        ),
        (
            NAME + part("f", b"x", extra=b"".join(b"x-%d: y\r\n" % i for i in range(20))) + END,
            400,
            "invalid_multipart",
        ),
        (NAME + part("files", b"broken", "adapter.txt") + END, 422, "adapter_tensor_invalid"),
        (NAME + part("files", b"x" * (4 << 20), "adapter.txt") + END, 413, "request_too_large"),
    ],
)
async def test_uploads_that_are_refused_leave_nothing(server, content, status, code):
    answer = await post(server, content)
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)
    assert server.engine.adapters.entries() == []


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=", 400),
        ('multipart/form-data; boundary=""', 400),
        (f"multipart/form-data; boundary={'b' * 71}", 400),
        ("multipart/mixed; boundary=b", 415),
        ("application/x-www-form-urlencoded", 415),
        ("text/plain", 415),
        ("", 415),
    ],
)
async def test_content_types_that_are_refused(server, content_type, status):
    for path in ("/v1/adapters", "/v1/adapters/validate"):
        answer = await post(server, NAME + FILE + END, path, {"content-type": content_type})
        assert answer.status_code == status
        error_of(answer)


async def test_size_is_counted_and_not_believed(server):
    async def much():
        yield NAME + part("files", b"", "adapter.txt")[:-2]
        for _ in range(100):
            yield b"x" * 100_000

    answer = await server.client.post("/v1/adapters", content=much(), headers=TYPE)
    assert error_of(answer)["code"] == "request_too_large"
    lie = TYPE | {"content-length": str(10**30)}
    answer = await post(server, NAME + FILE + END, headers=lie)
    assert error_of(answer)["code"] == "request_too_large"


async def test_an_upload_that_stops_coming_ends(server, monkeypatch):
    monkeypatch.setattr(upload, "_IDLE_SECONDS", 0.05)

    async def stalled():
        yield NAME + FILE
        await asyncio.sleep(30)
        yield END

    answer = await server.client.post("/v1/adapters", content=stalled(), headers=TYPE)
    assert answer.status_code == 408
    assert error_of(answer)["code"] == "request_timeout"


async def test_a_client_that_leaves_in_an_upload_leaves_nothing(server):
    staging = server.engine.adapters.store.root / "staging"
    sent = [{"type": "http.request", "body": NAME + FILE[:-10], "more_body": True}]
    answers = []

    async def receive():
        return sent.pop() if sent else {"type": "http.disconnect"}

    async def send(message):
        answers.append(message)

    headers = [(b"content-type", TYPE["content-type"].encode())]
    scope = {
        **{"type": "http", "method": "POST", "path": "/v1/adapters", "query_string": b""},
        **{"headers": headers, "http_version": "1.1", "scheme": "http", "server": ("t", 80)},
        "client": ("127.0.0.1", 1),
    }
    await server.app(scope, receive, send)
    await until(lambda: list(staging.iterdir()) == [])
    assert server.engine.adapters.entries() == []


async def test_uploads_at_once_are_bounded_and_the_next_is_refused(server):
    held = asyncio.Event()

    async def slow():
        yield NAME + FILE
        await held.wait()
        yield END

    def start():
        return asyncio.create_task(server.client.post("/v1/adapters", content=slow(), headers=TYPE))

    staging = server.engine.adapters.store.root / "staging"
    running = [start() for _ in range(8)]
    await until(lambda: len(list(staging.iterdir())) == 8)
    answer = await post(server, NAME + FILE + END)
    assert answer.status_code == 503
    assert error_of(answer)["code"] == "server_overloaded"
    held.set()
    answers = await asyncio.gather(*running)
    assert sorted(a.status_code for a in answers) == [200] * 7 + [201]


async def test_a_boundary_in_the_data_is_data(server):
    data = b"\r\n--" + BOUNDARY[:-1] + b"\r\n" * 3 + b"x--" + BOUNDARY
    answer = await post(server, NAME + part("files", data, "adapter.txt") + END)
    assert answer.json()["stored_bytes"] == len(data)


def test_parser_errors_do_not_leak_the_parsers_words():
    with pytest.raises(ApiError) as caught:
        upload.boundary_of("multipart/form-data")
    assert "offset" not in caught.value.message


async def test_disk_that_is_full_is_507(server, monkeypatch):
    import errno
    import os

    real = os.write

    def full(descriptor, data):
        if bytes(data[:7]) == b"weights":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    answer = await post(server, NAME + FILE + END)
    assert answer.status_code == 507
    assert error_of(answer)["code"] == "storage_unavailable"
    assert isinstance(answer, httpx.Response)
