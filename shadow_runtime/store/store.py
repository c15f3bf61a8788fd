"""The content-addressed store: `<root>/objects/<2 hex>/<64 hex>/` holds the files of one digest.

Runs in: API process. Imports neither torch nor vllm.

How bytes get in, and what a crash leaves at each point (`collect` removes what is left):

    staging/<uuid>          written, may be half there      crash: an unlocked directory, collected by its age
    staging/<uuid>          files and directory fsynced     crash: the same
    objects/ab/<digest>     renamed, all or nothing         crash: there or not; a repeated publish finds out
    objects/ab, objects     fsynced                         only now `commit` returns

Bytes leave the other way round: one rename out of `objects`, then they are removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from shadow_runtime.errors import AdapterFileError, StorageError
from shadow_runtime.quote import quote
from shadow_runtime.store.budget import (
    ADAPTER_FILES,
    BACKBONE_FILE,
    ByteBudget,
    is_pickle,
    needed_files,
    pickle_message,
)
from shadow_runtime.store.directory import AdapterDirectory, open_trusted_file
from shadow_runtime.store.disk import copy_file, exclusive, storage_errors, sync
from shadow_runtime.store.staging import CopyProgress, StagedArtifact, Staging, is_abandoned
from shadow_runtime.store.upload import UploadSession
from shadow_runtime.types import AdapterLimits

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_DIGEST_PREFIX = "sha256:"
_CONFIG_FILE = "config.json"


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """The files of one digest.

    Attributes:
        path: their directory, absolute and free of links.
        backbone_config: the operator's backbone config among them, None without one.
        num_bytes: of all files.
    """

    path: Path
    backbone_config: Path | None
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _SourceFile:
    name: str
    descriptor: int
    num_bytes: int


class ArtifactStore:
    """Files by digest. Any number of threads, servers and hosts may share a root on one file system.

    Invariants: a digest's directory is complete or absent; staged files are never read by an engine; a directory
    under `objects` never changes. On an error nothing is left behind but what `collect` removes.

    Args:
        root: directory of the store; made when it is missing.
        max_file_bytes: bound of one safetensors file, and of an adapter's files together.
        file_names: the only files that are taken from anywhere.

    Raises:
        StorageError: the root cannot be made or written.
    """

    def __init__(
        self,
        root: Path,
        *,
        max_file_bytes: int = AdapterLimits().max_file_bytes,
        file_names: Collection[str] = ADAPTER_FILES,
    ) -> None:
        self.root = Path(os.path.realpath(root))
        self._max_file_bytes = max_file_bytes
        self._file_names = tuple(file_names)
        self._objects, self._staging = self.root / "objects", self.root / "staging"
        self._lock = self.root / "lock"
        self._unreferenced_at: dict[str, float] = {}
        with storage_errors("be made"):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for directory in (self._objects, self._staging):
                directory.mkdir(mode=0o700, exist_ok=True)
            sync(self.root)

    def stage_directory(
        self,
        source: Path,
        backbone_config: Path | None = None,
        *,
        source_label: str,
        progress: CopyProgress | None = None,
    ) -> StagedArtifact:
        """Copy an adapter's files out of a directory; nothing but regular files of known names is opened.

        Args:
            source: the adapter's directory.
            backbone_config: config of its explicit backbone, or a directory that holds one, from the operator.
            source_label: for people, see `StagedArtifact.source`.
            progress: told how far it is.

        Raises:
            AdapterNotFoundError: no such directory.
            AdapterFileError: a file is a link, not regular, too large, only a pickle, or changes while it is read.
            AdapterLimitError: the files are too large together.
            StorageError: the copy cannot be written.
        """
        budget = self._budget()
        with AdapterDirectory(source) as directory, contextlib.ExitStack() as opened:
            files = self._open_files(directory, budget, opened)
            if backbone_config is not None:
                files.append(_open_backbone(backbone_config, budget, opened))
            staging = Staging(self._staging)
            try:
                _copy_files(files, staging, budget.num_bytes, progress)
            except BaseException:
                staging.remove()
                raise
        return StagedArtifact(
            path=staging.path,
            backbone_config=staging.path / BACKBONE_FILE if backbone_config is not None else None,
            num_bytes=budget.num_bytes,
            source=source_label,
            staging=staging,
        )

    def begin_upload(self) -> UploadSession:
        """Return a session that takes an adapter's files piece by piece; raises StorageError."""
        return UploadSession(Staging(self._staging), self._budget())

    def check_sizes(self, sizes: Mapping[str, int]) -> None:
        """Raise as staging would for files of these names and bytes, before any of them is read.

        Raises:
            AdapterFileError, AdapterLimitError: see `stage_directory`.
        """
        budget = self._budget()
        for name, num_bytes in sizes.items():
            budget.add_file(name)
            budget.check_file_bytes(name, num_bytes)
            budget.spend(num_bytes)

    def commit(
        self, staged: StagedArtifact, digest: str, *, replace: bool = False
    ) -> StoredArtifact:
        """Keep staged files under their digest; when this returns they survive a crash.

        When the digest is there already, the staged files are discarded and its age starts again. On an error the
        caller still holds `staged`.

        Args:
            staged: validated files.
            digest: theirs.
            replace: what is there is known to be damaged: the staged files take its place.

        Raises:
            StorageError: they cannot be kept.
        """
        target = self._object_path(digest)
        with storage_errors("keep an adapter"):
            for path in (*staged.path.iterdir(), staged.path):
                sync(path)
            target.parent.mkdir(mode=0o700, exist_ok=True)
            with exclusive(self._lock):
                damaged = self._move_out(target) if replace else None
                is_new = not target.exists()
                # Its age starts now, also for a collection that is under way elsewhere.
                os.utime(staged.path if is_new else target)
                if is_new:
                    staged.staging.move_to(target)
            # Also for a digest that was there: its first server may have died before this line.
            sync(target.parent)
            sync(self._objects)
        staged.discard()
        _throw_away(damaged)
        with storage_errors("be read"):
            return self._get(target)

    def find(self, digest: str) -> StoredArtifact | None:
        """Return the files of a digest, None when they are not in this store."""
        try:
            return self._get(self._object_path(digest))
        except FileNotFoundError:
            return None

    def remove(self, digest: str) -> bool:
        """Remove a digest's files; False when there are none. Files that are open stay readable."""
        with storage_errors("remove an adapter"), exclusive(self._lock):
            trash = self._move_out(self._object_path(digest))
        return _throw_away(trash)

    def collect(self, referenced: Collection[str], min_age_seconds: float) -> list[str]:
        """Remove what nobody needs and return the digests that went.

        A digest goes when it has been missing in `referenced` in every call of this store for `min_age_seconds`
        and no server committed it in that time, so that other servers' requests can end and a publish that is
        under way elsewhere is safe. Staging directories that no process uses go at that age, too.
        """
        removed = []
        with storage_errors("be collected"):
            for digest in self._long_unreferenced(frozenset(referenced), min_age_seconds):
                if _throw_away(self._move_out_if_old(digest, min_age_seconds)):
                    removed.append(digest)
                self._unreferenced_at.pop(digest, None)
            self._collect_staging(min_age_seconds)
        return removed

    def _budget(self) -> ByteBudget:
        return ByteBudget(self._max_file_bytes, self._file_names)

    def _open_files(
        self, directory: AdapterDirectory, budget: ByteBudget, opened: contextlib.ExitStack
    ) -> list[_SourceFile]:
        names = needed_files(name for name in self._file_names if directory.has(name))
        pickles = [name for name in directory.names() if is_pickle(name)]
        if pickles and not any(name.endswith(".safetensors") for name in names):
            raise AdapterFileError(pickle_message(min(pickles)))
        for name in names:
            budget.add_file(name)
        return [_source_file(name, directory.open_file(name), budget, opened) for name in names]

    def _object_path(self, digest: str) -> Path:
        match = _DIGEST.fullmatch(digest)
        if match is None:
            raise StorageError(f"{quote(digest)} is not a digest")
        return self._objects / match[1][:2] / match[1]

    def _get(self, target: Path) -> StoredArtifact:
        try:
            sizes = {path.name: path.stat().st_size for path in target.iterdir()}
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(f"the adapter store cannot be read: {error.strerror}") from error
        backbone = target / BACKBONE_FILE if BACKBONE_FILE in sizes else None
        return StoredArtifact(target, backbone, sum(sizes.values()))

    def _digests(self) -> Iterator[str]:
        for path in self._objects.glob("[0-9a-f][0-9a-f]/*"):
            if _DIGEST.fullmatch(_DIGEST_PREFIX + path.name):
                yield _DIGEST_PREFIX + path.name

    def _long_unreferenced(self, referenced: frozenset[str], min_age_seconds: float) -> list[str]:
        now = time.monotonic()
        self._unreferenced_at = {
            digest: self._unreferenced_at.get(digest, now)
            for digest in self._digests()
            if digest not in referenced
        }
        return [d for d, at in self._unreferenced_at.items() if now - at >= min_age_seconds]

    def _move_out_if_old(self, digest: str, min_age_seconds: float) -> Path | None:
        target = self._object_path(digest)
        with exclusive(self._lock) as lock:
            try:
                is_old = target.stat().st_mtime <= _disk_time(lock) - min_age_seconds
            except FileNotFoundError:
                return None
            return self._move_out(target) if is_old else None

    def _move_out(self, target: Path) -> Path | None:
        trash = self._staging / uuid.uuid4().hex
        try:
            os.rename(target, trash)
        except FileNotFoundError:
            return None
        return trash

    def _collect_staging(self, min_age_seconds: float) -> None:
        with exclusive(self._lock) as lock:
            oldest_unix = _disk_time(lock) - min_age_seconds
        for path in self._staging.iterdir():
            # Another server may remove it first.
            with contextlib.suppress(FileNotFoundError):
                if is_abandoned(path, oldest_unix):
                    _throw_away(path)


def _open_backbone(path: Path, budget: ByteBudget, opened: contextlib.ExitStack) -> _SourceFile:
    file = path / _CONFIG_FILE if path.is_dir() else path
    return _source_file(BACKBONE_FILE, open_trusted_file(file), budget, opened)


def _source_file(
    name: str, descriptor: int, budget: ByteBudget, opened: contextlib.ExitStack
) -> _SourceFile:
    opened.callback(os.close, descriptor)
    num_bytes = os.fstat(descriptor).st_size
    budget.check_file_bytes(name, num_bytes)
    budget.spend(num_bytes)
    return _SourceFile(name, descriptor, num_bytes)


def _copy_files(
    files: list[_SourceFile], staging: Staging, total_bytes: int, progress: CopyProgress | None
) -> None:
    done = 0

    def on_copied(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress is not None:
            progress("reading", {"num_bytes": done, "total_bytes": total_bytes})

    for file in files:
        target = staging.create(file.name)
        try:
            with storage_errors("copy an adapter"):
                copy_file(file.descriptor, target, file.name, file.num_bytes, on_copied)
        finally:
            os.close(target)


def _disk_time(lock: int) -> float:
    """Return the file system's own time: servers whose clocks differ agree on ages."""
    os.utime(lock)
    return os.fstat(lock).st_mtime


def _throw_away(trash: Path | None) -> bool:
    if trash is None:
        return False
    shutil.rmtree(trash, ignore_errors=True)
    return True
