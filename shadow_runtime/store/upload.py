"""Files that arrive piece by piece, from an upload or a download.

Runs in: API process. Imports neither torch nor vllm.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from shadow_runtime.errors import AdapterFileError
from shadow_runtime.store.budget import BACKBONE_FILE, ByteBudget
from shadow_runtime.store.disk import storage_errors, write_all
from shadow_runtime.store.staging import StagedArtifact, Staging


class UploadWriter:
    """Writes one file of an upload; a context manager. Not shared between threads."""

    def __init__(self, name: str, descriptor: int, budget: ByteBudget) -> None:
        self.name = name
        self.num_bytes = 0
        self._descriptor: int | None = descriptor
        self._budget = budget

    def __enter__(self) -> UploadWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """Append `data`.

        Raises:
            AdapterFileError: the file is too large, or closed.
            AdapterLimitError: all files together are too large.
            StorageError: the disk is full, say.
        """
        if self._descriptor is None:
            raise AdapterFileError("the upload was ended while it was written")
        self._budget.check_file_bytes(self.name, self.num_bytes + len(data))
        self._budget.spend(len(data))
        with storage_errors("write a file"):
            write_all(self._descriptor, data)
        self.num_bytes += len(data)

    def close(self) -> None:
        """Close the file; the second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class UploadSession:
    """The files of one upload. Ends with `finish` or `discard`; not shared between threads."""

    def __init__(self, staging: Staging, budget: ByteBudget) -> None:
        self._staging = staging
        self._budget = budget
        self._writers: list[UploadWriter] = []
        self._backbone_config: Path | None = None

    def open(self, name: str) -> UploadWriter:
        """Return a writer of the new file `name`.

        Raises:
            AdapterFileError: no adapter has such a file, it is a pickle, or it is there already.
            StorageError: the file cannot be made.
        """
        self._budget.add_file(name)
        return self._create(name)

    def open_backbone_config(self) -> UploadWriter:
        """Return a writer of the explicit backbone's config; it counts instead of a config.json among the files.

        Raises:
            AdapterFileError: it is there already.
            StorageError: the file cannot be made.
        """
        if self._backbone_config is not None:
            raise AdapterFileError("the backbone config is there twice")
        self._backbone_config = self._staging.path / BACKBONE_FILE
        return self._create(BACKBONE_FILE)

    def finish(self, source_label: str) -> StagedArtifact:
        """Return the staged files; the session is over.

        Raises:
            AdapterFileError: there is none but for a backbone config; everything is discarded then.
        """
        self._close_writers()
        if not self._budget.names:
            self.discard()
            raise AdapterFileError("the upload holds no file")
        return StagedArtifact(
            path=self._staging.path,
            backbone_config=self._backbone_config,
            num_bytes=self._budget.num_bytes,
            source=source_label,
            staging=self._staging,
        )

    def discard(self) -> None:
        """Remove everything; does nothing when it is called again."""
        self._close_writers()
        self._staging.remove()

    def _create(self, name: str) -> UploadWriter:
        writer = UploadWriter(name, self._staging.create(name), self._budget)
        self._writers.append(writer)
        return writer

    def _close_writers(self) -> None:
        for writer in self._writers:
            writer.close()
