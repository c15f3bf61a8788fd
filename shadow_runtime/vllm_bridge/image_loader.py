"""Reading adapters into host images beside the steps.

Runs in: GPU worker; the step thread asks, loader threads read, hash and pad.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from shadow_runtime.artifact import load_adapter
from shadow_runtime.errors import DigestMismatchError
from shadow_runtime.slots.image import SlotImage, build_image
from shadow_runtime.types import BaseGeometry
from shadow_runtime.vllm_bridge.request import AdapterSource

if TYPE_CHECKING:
    from shadow_runtime.vllm_bridge.executor import ShadowExecutor

_NUM_LOADERS = 2
"""Adapters that are read at once: a small one need not wait for a large one."""

_MAX_READERS = 8

_SWITCH_SECONDS = 0.0005


class ImageLoader:
    """Images that are being read or have been read, until somebody takes or drops them.

    Attributes:
        threads: the loader's threads; copies into slots run there too where there is no copy engine.

    Thread/process ownership: the step thread owns all fields; loader threads only return images.
    """

    def __init__(self, executor: ShadowExecutor, base: BaseGeometry) -> None:
        # A step waits for the interpreter as long as a loader thread may keep it, and 5 ms are more than a step.
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._executor = executor
        self._base = base
        self._staged: dict[str, Future[SlotImage]] = {}
        self.threads = ThreadPoolExecutor(_NUM_LOADERS, thread_name_prefix="shadow-loader")
        # Tensors of one adapter are read and hashed at once, on at most half of the cores: steps need the others.
        num_readers = max(1, min(_MAX_READERS, len(os.sched_getaffinity(0)) // 2))
        self._readers = ThreadPoolExecutor(num_readers, thread_name_prefix="shadow-reader")

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
        config = None if source.backbone_config is None else Path(source.backbone_config)
        adapter = load_adapter(
            Path(source.path),
            self._base,
            self._executor.config.limits,
            backbone_config=config,
            threads=self._readers,
        )
        if adapter.manifest.digest != source.digest:
            raise DigestMismatchError(
                f"the files at {source.path} changed: expected {source.digest}, read {adapter.manifest.digest}"
            )
        return build_image(
            adapter,
            self._executor.config,
            self._executor.plan,
            hidden_size=self._executor.hidden_size,
            dtype=self._executor.dtype,
            pin=self._executor.state.is_cuda,
        )
