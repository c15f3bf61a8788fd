"""Reading adapters into host images beside the steps.

Runs in: GPU worker; the step thread asks, loader threads read, hash and pad.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from shadow_runtime.artifact import load_adapter
from shadow_runtime.artifact.canonical_file import CanonicalFile
from shadow_runtime.errors import AdapterError, DigestMismatchError
from shadow_runtime.slots.image import ImageDraft, SlotImage
from shadow_runtime.store.budget import CANONICAL_FILE
from shadow_runtime.store.directory import AdapterDirectory
from shadow_runtime.switch_interval import shorten_switch_interval
from shadow_runtime.types import AdapterManifest, BaseGeometry
from shadow_runtime.vllm_bridge.request import AdapterSource

if TYPE_CHECKING:
    from shadow_runtime.vllm_bridge.executor import ShadowExecutor

logger = logging.getLogger(__name__)

_NUM_LOADERS = 2
"""Adapters that are read at once: a small one need not wait for a large one."""

_MAX_READERS = 8


class ImageLoader:
    """Images that are being read or have been read, until somebody takes or drops them.

    Attributes:
        threads: the loader's threads; copies into slots run there too where there is no copy engine.
        readers: threads for the pieces of one adapter: reading, hashing, copying. They wait for nobody.

    Thread/process ownership: the step thread owns all fields; loader threads only return images.
    """

    def __init__(self, executor: ShadowExecutor, base: BaseGeometry) -> None:
        shorten_switch_interval()
        self._executor = executor
        self._base = base
        self._staged: dict[str, Future[SlotImage]] = {}
        self.threads = ThreadPoolExecutor(_NUM_LOADERS, thread_name_prefix="shadow-loader")
        # Tensors of one adapter are read and hashed at once, on at most half of the cores: steps need the others.
        num_readers = max(1, min(_MAX_READERS, len(os.sched_getaffinity(0)) // 2))
        self.readers = ThreadPoolExecutor(num_readers, thread_name_prefix="shadow-reader")

    @property
    def staged(self) -> frozenset[str]:
        """Digests of all images that are being or have been read."""
        return frozenset(self._staged)

    def begin(self, source: AdapterSource) -> None:
        """Begin to read an adapter; does nothing when it is being or has been read."""
        if source.digest not in self._staged:
            self._staged[source.digest] = self.threads.submit(self._read, source)

    def is_ready(self, digest: str) -> bool:
        """Return whether `take` of a begun adapter would not wait."""
        return self._staged[digest].done()

    def take(self, source: AdapterSource) -> SlotImage:
        """Return the image of an adapter, reading it now when that has not begun, and forget it.

        Raises:
            ShadowError: it cannot be read, its bytes have another digest, or it fits no slot class.
        """
        future = self._staged.pop(source.digest, None)
        return self._read(source) if future is None else future.result()

    def drop(self, digest: str) -> None:
        """Forget an adapter; reading that has begun comes to nothing."""
        future = self._staged.pop(digest, None)
        if future is not None:
            future.cancel()

    def _read(self, source: AdapterSource) -> SlotImage:
        with AdapterDirectory(Path(source.path)) as directory:
            if directory.has(CANONICAL_FILE):
                try:
                    return self._read_canonical(source, directory.open_file(CANONICAL_FILE))
                except (AdapterError, DigestMismatchError) as error:
                    # It only saves time: the checkpoint that it was made from decides.
                    logger.warning("reading the checkpoint of %s instead: %s", source.digest, error)
        return self._read_checkpoint(source)

    def _read_canonical(self, source: AdapterSource, descriptor: int) -> SlotImage:
        with CanonicalFile(descriptor, self._base, self._executor.config.limits) as file:
            _check_digest(source, file.manifest.digest)
            draft = self._draft(file.manifest)
            return draft.finish(file.read(draft.place, self.readers))

    def _read_checkpoint(self, source: AdapterSource) -> SlotImage:
        config = None if source.backbone_config is None else Path(source.backbone_config)
        adapter = load_adapter(
            Path(source.path),
            self._base,
            self._executor.config.limits,
            backbone_config=config,
            threads=self.readers,
        )
        _check_digest(source, adapter.manifest.digest)
        return self._draft(adapter.manifest).finish(adapter)

    def _draft(self, manifest: AdapterManifest) -> ImageDraft:
        return ImageDraft(
            manifest,
            self._executor.config,
            self._executor.plan,
            hidden_size=self._executor.hidden_size,
            dtype=self._executor.dtype,
        )


def _check_digest(source: AdapterSource, digest: str) -> None:
    if digest != source.digest:
        raise DigestMismatchError(
            f"the files at {source.path} changed: expected {source.digest}, read {digest}"
        )
