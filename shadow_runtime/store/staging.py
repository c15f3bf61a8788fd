"""A place of its own for one adapter's files until they are validated; gone without trace when they are not.

Runs in: API process. Imports neither torch nor vllm.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shadow_runtime.store.budget import CANONICAL_FILE
from shadow_runtime.store.disk import open_directory, storage_errors

CopyProgress = Callable[[str, Mapping[str, Any]], None]
"""Told (`reading`, {num_bytes, total_bytes}) after every piece that was copied."""

# Canonical tensors have zeros where an adapter skips layers; what would grow more is read from its checkpoint.
_CANONICAL_GROWTH = 2
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Staging:
    """A new directory below `parent`, locked while this process uses it, so that no server collects it.

    Any thread may call: a publish that is cancelled discards what another thread is about to keep, and the directory
    then is kept whole or removed whole.

    Raises:
        StorageError: it cannot be made.
    """

    def __init__(self, parent: Path) -> None:
        self.path = parent / uuid.uuid4().hex
        self._turn = threading.Lock()
        with storage_errors("make a staging directory"):
            os.mkdir(self.path, 0o700)
            self._descriptor: int | None = open_directory(self.path)
        # Where locks do not work (some network file systems) the age alone protects the directory.
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def create(self, name: str) -> int:
        """Return a descriptor that writes the new file `name`; raises StorageError."""
        with self._turn, storage_errors("make a file"):
            self._check_own()
            return os.open(name, _NEW_FILE, 0o600, dir_fd=self._descriptor)

    def move_to(self, target: Path) -> None:
        """Make the directory `target` and unlock it: from here on it is not staged. Raises OSError."""
        with self._turn:
            self._check_own()
            os.rename(self.path, target)
            self._unlock()

    def remove(self) -> None:
        """Remove the directory and unlock, unless it was moved; what cannot be removed now is collected later."""
        with self._turn:
            if self._descriptor is not None:
                shutil.rmtree(self.path, ignore_errors=True)
            self._unlock()

    def _check_own(self) -> None:
        if self._descriptor is None:
            raise FileNotFoundError(errno.ENOENT, "the staged files were discarded", str(self.path))

    def _unlock(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@dataclass(frozen=True, slots=True)
class CanonicalTarget:
    """Where a validator writes what it made of an adapter.

    Attributes:
        descriptor: of an empty file.
        max_bytes: that it may take; over that nothing is written.
    """

    descriptor: int
    max_bytes: int


@dataclass(slots=True, eq=False)
class StagedArtifact:
    """Copied files that nobody has looked into yet. Whoever holds it commits it or discards it.

    Attributes:
        path: directory with the adapter's files.
        backbone_config: the operator's backbone config inside it, None without one.
        num_bytes: of all files.
        source: where they came from, one printable line for people.
        staging: owns the directory.
    """

    path: Path
    backbone_config: Path | None
    num_bytes: int
    source: str
    staging: Staging = field(repr=False)

    @contextlib.contextmanager
    def canonical_file(self) -> Iterator[CanonicalTarget]:
        """Let somebody write the canonical file among the staged ones; it goes again when nothing was written.

        Raises:
            StorageError: it cannot be made.
        """
        descriptor = self.staging.create(CANONICAL_FILE)
        try:
            yield CanonicalTarget(descriptor, _CANONICAL_GROWTH * self.num_bytes)
            with storage_errors("keep a file"):
                written = os.fstat(descriptor).st_size
                if written == 0:
                    os.unlink(self.path / CANONICAL_FILE)
        finally:
            os.close(descriptor)
        self.num_bytes += written

    def discard(self) -> None:
        """Remove the files; does nothing after a commit or a discard."""
        self.staging.remove()


def is_abandoned(path: Path, oldest_unix: float) -> bool:
    """Return whether no process uses a staging directory and nothing in it changed since `oldest_unix`."""
    descriptor = open_directory(path)
    try:
        return _is_unlocked(descriptor) and _changed_unix(descriptor) <= oldest_unix
    finally:
        os.close(descriptor)


def _is_unlocked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # See `Staging`: the age decides.
        return True
    return True


def _changed_unix(descriptor: int) -> float:
    with os.scandir(descriptor) as entries:
        times = [entry.stat(follow_symlinks=False).st_mtime for entry in entries]
    return max(times, default=os.fstat(descriptor).st_mtime)
