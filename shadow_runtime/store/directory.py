"""Opening the files of an adapter directory so that nothing but a regular file is ever read.

Runs in: API process | GPU worker. Imports neither torch nor vllm.
"""

from __future__ import annotations

import itertools
import os
import stat
from pathlib import Path
from types import TracebackType

from shadow_runtime.errors import AdapterFileError, AdapterNotFoundError
from shadow_runtime.quote import quote

# O_NONBLOCK: opening a FIFO must not wait for a writer. O_NOFOLLOW: a link may point out of the directory.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_ENTRIES = 10_000


class AdapterDirectory:
    """An open directory; its files are opened relative to it, so that a rename in between changes nothing.

    Args:
        path: the directory; it may itself be reached through links.

    Raises:
        AdapterNotFoundError: there is no directory at `path`.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.path = Path(os.path.realpath(path))
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError):
            raise AdapterNotFoundError(
                f"no adapter directory at {quote(str(path))}, or it is not readable"
            ) from None

    def __enter__(self) -> AdapterDirectory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    def has(self, name: str) -> bool:
        """Return whether an entry of any kind is called `name`."""
        try:
            os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except OSError:
            return False
        return True

    def names(self) -> list[str]:
        """Return what the directory holds, sorted; what is beyond the first 10,000 entries does not count."""
        with os.scandir(self._descriptor) as entries:
            return sorted(entry.name for entry in itertools.islice(entries, _MAX_ENTRIES))

    def open_file(self, name: str) -> int:
        """Return a descriptor that reads the regular file `name`; the caller closes it.

        Raises:
            AdapterFileError: `name` is missing, unreadable, a link, or not a regular file.
        """
        return _open_regular(name, name, self._descriptor)


def open_trusted_file(path: Path) -> int:
    """Return a descriptor that reads the regular file at `path`, which the operator named.

    Raises:
        AdapterFileError: as `AdapterDirectory.open_file`.
    """
    return _open_regular(path, path.name, None)


def _open_regular(target: str | Path, name: str, directory: int | None) -> int:
    try:
        # Only the operator's own path may lead through links.
        resolved = os.path.realpath(target) if directory is None else target
        descriptor = os.open(resolved, _FILE_FLAGS, dir_fd=directory)
    except FileNotFoundError:
        raise AdapterFileError(f"the adapter has no file {quote(name)}") from None
    except (OSError, ValueError):
        raise AdapterFileError(
            f"{quote(name)} is a symbolic link or unreadable; an adapter is a directory of regular"
            " files (copy the files that links point to)"
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise AdapterFileError(f"{quote(name)} is not a regular file")
    return descriptor
