"""multipart/form-data of an adapter's files, read from the disk while it is sent: never whole in memory."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path

import anyio.to_thread

from shadow_client.adapter import Progress

ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.json",
    "model.safetensors",
    "shadow_adapter.safetensors",
    "shadow_config.json",
    "shadow_modules.safetensors",
)
"""Files of a folder that are uploaded; whatever else is in it is left alone."""

# A trainer's folder may hold the base's weights under this name; it counts only where nothing else can.
_TRAINER_FILE = "model.safetensors"
_OWN_TENSOR_FILES = {"adapter_model.safetensors", "shadow_adapter.safetensors"}

PIECE_BYTES = 1 << 18

OnProgress = Callable[[Progress], None]
Files = Path | str | Sequence[Path]


def find_files(source: Files) -> tuple[Path, ...]:
    """Return the files of an adapter.

    Args:
        source: its folder, or the files themselves.

    Raises:
        FileNotFoundError: there is no such folder, or no adapter in it.
    """
    if not isinstance(source, str | os.PathLike):
        return tuple(Path(path) for path in source)
    folder = Path(source)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder '{folder}'")
    names = [name for name in ADAPTER_FILES if (folder / name).is_file()]
    if not names:
        raise FileNotFoundError(f"'{folder}' holds no file of an adapter")
    skipped = {_TRAINER_FILE} if _OWN_TENSOR_FILES & set(names) else set()
    return tuple(folder / name for name in names if name not in skipped)


def find_file(path: Path | str) -> Path:
    """Return the path of a single file; raises FileNotFoundError where there is none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file '{path}'")
    return Path(path)


class MultipartUpload:
    """One body, which can be sent more than once: each time the files are opened again.

    Args:
        fields: text fields, in front of the files.
        files: each is sent under its own name. Their sizes are taken now: one that changes while it is sent breaks
            the request.
        backbone_config: sent as what it is, whatever its name.
        on_progress: told `uploading` after every piece; of a body that is sent again, from 0 again.
    """

    def __init__(
        self,
        fields: Mapping[str, str],
        files: Sequence[Path],
        on_progress: OnProgress | None = None,
        backbone_config: Path | None = None,
    ) -> None:
        self._boundary = secrets.token_hex(16)
        self._on_progress = on_progress
        head = "".join(self._field(name, value) for name, value in fields.items())
        self._parts: list[tuple[bytes, Path]] = []
        parts = [("file", path) for path in files]
        if backbone_config is not None:
            parts.append(("backbone_config", backbone_config))
        for part, path in parts:
            self._parts.append(((head + self._file_head(part, path.name)).encode(), path))
            head = "\r\n"
        self._tail = f"\r\n--{self._boundary}--\r\n".encode()
        sizes = [len(head) + path.stat().st_size for head, path in self._parts]
        self.total_bytes = sum(sizes) + len(self._tail)

    @property
    def headers(self) -> dict[str, str]:
        """The request's headers that go with it."""
        return {
            "content-type": f"multipart/form-data; boundary={self._boundary}",
            "content-length": str(self.total_bytes),
        }

    def _field(self, name: str, value: str) -> str:
        return f'--{self._boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'

    def _file_head(self, part: str, name: str) -> str:
        quoted = name.replace("\\", "%5C").replace('"', "%22").replace("\r", "").replace("\n", "")
        return (
            f'--{self._boundary}\r\ncontent-disposition: form-data; name="{part}"; '
            f'filename="{quoted}"\r\ncontent-type: application/octet-stream\r\n\r\n'
        )

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body, 256 KiB at a time."""
        num_bytes = 0
        for piece in self._pieces():
            yield piece
            num_bytes += len(piece)
            self._tell(num_bytes)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the same, reading off the event loop."""
        pieces, num_bytes = self._pieces(), 0
        while piece := await anyio.to_thread.run_sync(next, pieces, b""):
            yield piece
            num_bytes += len(piece)
            self._tell(num_bytes)

    def _pieces(self) -> Iterator[bytes]:
        for head, path in self._parts:
            yield head
            with path.open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    yield piece
        yield self._tail

    def _tell(self, num_bytes: int) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress("uploading", num_bytes, self.total_bytes))
