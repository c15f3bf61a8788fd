"""The few disk operations that decide whether bytes survive a crash.

Runs in: API process. Imports neither torch nor vllm.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from shadow_runtime.errors import AdapterFileError, StorageError
from shadow_runtime.quote import quote

_COPY_BYTES = 16 << 20
_READ_BYTES = 1 << 20
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# What a file system answers that cannot copy between these two files itself.
_NO_COPY = frozenset(
    {
        errno.EBADF,
        errno.EINVAL,
        errno.ENOSYS,
        errno.EOPNOTSUPP,
        errno.EOVERFLOW,
        errno.EPERM,
        errno.EXDEV,
    }
)


@contextlib.contextmanager
def storage_errors(action: str) -> Iterator[None]:
    """Turn an `OSError` inside the block into a `StorageError` that says what could not be done."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"the adapter store cannot {action}: {error.strerror}") from error


def open_directory(path: Path) -> int:
    """Return a descriptor of a directory of the store."""
    return os.open(path, _DIRECTORY_FLAGS)


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a directory, are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[int]:
    """Hold the lock file at `path`; threads and processes wait for each other, and a crash lets go."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of `data`; an `OSError` says why not."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def copy_file(
    source: int, target: int, name: str, num_bytes: int, on_copied: Callable[[int], None]
) -> None:
    """Copy a file whose size was looked up before; by reference where the file system can.

    Args:
        source: descriptor of a regular file, at its start.
        target: descriptor of an empty file.
        name: of the file, for messages.
        num_bytes: its size when it was opened; no byte more is ever written.
        on_copied: called with the number of bytes of every piece.

    Raises:
        AdapterFileError: the file cannot be read, or has another size at the end.
        OSError: `target` cannot be written.
    """
    done = 0
    while done < num_bytes:
        count = _copy_piece(source, target, name, min(_COPY_BYTES, num_bytes - done))
        if count == 0:
            raise AdapterFileError(f"{quote(name)} became shorter while it was read")
        done += count
        on_copied(count)
    if os.fstat(source).st_size != num_bytes:
        raise AdapterFileError(f"{quote(name)} changed its size while it was read")


def _copy_piece(source: int, target: int, name: str, num_bytes: int) -> int:
    try:
        count = os.copy_file_range(source, target, num_bytes)
    except OSError as error:
        if error.errno not in _NO_COPY:
            raise
        count = 0
    # Some file systems answer 0 where reading gives bytes.
    return count or _read_piece(source, target, name, min(num_bytes, _READ_BYTES))


def _read_piece(source: int, target: int, name: str, num_bytes: int) -> int:
    try:
        data = os.read(source, num_bytes)
    except OSError as error:
        raise AdapterFileError(f"{quote(name)} cannot be read: {error.strerror}") from None
    write_all(target, data)
    return len(data)
