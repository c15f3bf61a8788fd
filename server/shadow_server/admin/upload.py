"""An adapter's files out of a multipart/form-data body: onto the disk as they come, never whole in memory.

Runs in: API process. python-multipart's streaming parser is used by itself: Starlette's form() would
spool whole files, without knowing which names an adapter may have.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from shadow_server.engine import UploadSession
from shadow_server.errors import ApiError

_MAX_PARTS = 32
_MAX_HEADERS = 8
_MAX_HEADER_BYTES = 1024
_MAX_FIELD_BYTES = 4096
_BATCH_BYTES = 256 << 10
_IDLE_SECONDS = 60.0

BACKBONE_CONFIG = "backbone_config"
"""The part that holds an explicit backbone's config, a file of any name or a text."""


class _Writer(Protocol):
    def write(self, data: bytes, /) -> object: ...


class UploadParser:
    """Writes the files of one body into an upload session and keeps its text fields.

    Bounded: the number of parts, the headers of a part and a field's length here; files by the session,
    the whole body by the caller. Used by one thread at a time.

    Args:
        boundary: of the content type.
        session: takes the files; a name that no adapter file has is refused by it.
            The part `backbone_config` is its explicit backbone's config.
    """

    def __init__(self, boundary: bytes, session: UploadSession) -> None:
        self.fields: dict[str, str] = {}
        self.num_files = 0  # of the adapter, without a backbone config
        self._session = session
        self._num_parts = 0
        self._headers: dict[bytes, bytes] = {}
        self._header_name = self._header_value = b""
        self._writer: _Writer | None = None
        self._field_name = ""
        self._field = b""
        self._is_complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._take_header_name,
                "on_header_value": self._take_header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._open_part,
                "on_part_data": self._take_data,
                "on_part_end": self._end_part,
                "on_end": self._complete,
            },
            max_header_count=_MAX_HEADERS,
            max_header_size=_MAX_HEADER_BYTES,
        )

    def feed(self, data: bytes) -> None:
        """Parse the next bytes; blocks on the disk.

        Raises:
            ApiError: 400 for a body that is not multipart/form-data as an upload has it.
            AdapterFileError: a file that an adapter does not have.
            AdapterLimitError: a file over the limit.
            StorageError: the disk is full or fails.
        """
        try:
            self._parser.write(data)
        except FormParserError:  # its message speaks of offsets and states
            raise _malformed("it does not parse") from None

    def finish(self) -> None:
        """Check that the body came to its closing boundary; raises ApiError 400 when not."""
        if not self._is_complete:
            raise _malformed("it ends before its closing boundary")

    def _begin_part(self) -> None:
        self._num_parts += 1
        if self._num_parts > _MAX_PARTS:
            raise _malformed(f"it has more than {_MAX_PARTS} parts")
        self._headers = {}
        self._header_name = self._header_value = b""

    def _take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _open_part(self) -> None:
        disposition, options = parse_options_header(
            self._headers.get(b"content-disposition", b"").decode("latin-1")
        )
        name = _text(options.get(b"name", b""), "a part's name")
        if disposition != b"form-data" or not name:
            raise _malformed("a part has no form-data name")
        if b"content-transfer-encoding" in self._headers:
            raise _malformed("a part has a transfer encoding")
        if name == BACKBONE_CONFIG:
            self._writer = self._session.open_backbone_config()
        elif b"filename" in options:
            self._writer = self._session.open(_text(options[b"filename"], "a file's name"))
            self.num_files += 1
        elif name in self.fields:
            raise _malformed(f"the field '{name[:64]}' comes twice")
        else:
            self._field_name, self._field = name, b""

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._writer is not None:
            self._writer.write(data[start:end])
            return
        self._field += data[start:end]
        if len(self._field) > _MAX_FIELD_BYTES:
            raise _malformed(f"the field '{self._field_name[:64]}' is too long")

    def _end_part(self) -> None:
        if self._writer is None:
            self.fields[self._field_name] = _text(self._field, f"'{self._field_name[:64]}'")
        self._writer = None

    def _complete(self) -> None:
        self._is_complete = True


def boundary_of(content_type: str) -> bytes | None:
    """Return the boundary of a multipart/form-data content type, None for another type.

    Raises:
        ApiError: 400 for a multipart/form-data without a usable boundary.
    """
    media_type, options = parse_options_header(content_type)
    if media_type != b"multipart/form-data":
        return None
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise _malformed("its boundary is missing or too long")
    return boundary


async def receive_upload(
    request: Request, boundary: bytes, session: UploadSession, max_bytes: int
) -> Mapping[str, str]:
    """Write the files of the request's body into `session`.

    Holds at most a few batches of 256 KiB in memory; parsing and writing are off the event loop.

    Returns:
        The text fields, by name.

    Raises:
        ApiError: 413 over `max_bytes`, 408 when nothing came for a minute, 400 for what is malformed.
        ClientDisconnect: the client left.
        ShadowError: see `UploadParser.feed`.
    """
    parser = UploadParser(boundary, session)
    async for batch in _batches(request, max_bytes):
        await asyncio.to_thread(parser.feed, batch)
    parser.finish()
    if parser.num_files == 0:
        raise _malformed("it holds no file")
    return parser.fields


async def _batches(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise _too_large(max_bytes)
    chunks = aiter(request.stream())
    num_bytes, waiting = 0, bytearray()
    while True:
        try:
            async with asyncio.timeout(_IDLE_SECONDS):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            break
        except TimeoutError:
            raise ApiError.of("request_timeout", "The upload stopped coming") from None
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        waiting += chunk
        if len(waiting) >= _BATCH_BYTES:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed(f"{what} is not UTF-8") from None


def _malformed(reason: str) -> ApiError:
    return ApiError.of("invalid_multipart", f"The upload is refused: {reason}")


def _too_large(max_bytes: int) -> ApiError:
    return ApiError.of("request_too_large", f"The upload is larger than {max_bytes} bytes")
