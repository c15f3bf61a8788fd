"""Copying an image into a slot while steps run on other slots.

Runs in: GPU worker. The step thread begins and ends copies; on a CPU the copying itself is a loader thread's.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from shadow_runtime.slots.image import SlotImage
from shadow_runtime.slots.stack import AdapterStacks

# One is filled while the device reads another.
_NUM_BUFFERS = 2
_PIECE_BYTES = 4 << 20


class SlotFill(Protocol):
    """A copy under way into one slot."""

    def is_done(self) -> bool:
        """Return whether nothing of the copy is outstanding, without waiting."""
        ...

    def join(self) -> None:
        """Put everything that the step thread starts from now on behind the copy; raises what the copy raised."""
        ...


class SlotWriter(Protocol):
    """Writes images into slots that no step has been told of."""

    def begin_step(self) -> None:
        """Take note that a step is about to start on the calling thread's current stream."""
        ...

    def begin(self, slot: int, image: SlotImage) -> SlotFill:
        """Begin to copy beside the running steps."""
        ...

    def write(self, slot: int, image: SlotImage) -> None:
        """Copy in line with the steps: what the step thread starts after it sees the image."""
        ...


class StreamWriter:
    """Copies through pinned memory on a CUDA stream of its own.

    Images are in ordinary memory: there may be many, and to pin memory takes long and holds every step up meanwhile. So
    a few buffers are pinned at start, and a thread copies images there on their way.

    A slot's previous adapter may still be read by a step that runs on the device, so the copy waits for what the
    steps' stream had been given when it began. The other way round, steps wait for the copy's event only when they need
    its adapter before it has completed.
    """

    def __init__(
        self,
        stacks: AdapterStacks,
        device: torch.device,
        image_bytes: int,
        threads: Executor,
        allow_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Make the stream and pin the buffers.

        Args:
            stacks: what is written.
            device: where they are.
            image_bytes: of the largest image.
            threads: pieces of an image are copied there at once.
            allow_sync: entered around copies in line with the steps, which wait for the host.
        """
        self._allow_sync = allow_sync
        self._stacks = stacks
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._step_stream = torch.cuda.current_stream(device)
        self._device = device
        self._threads = threads
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="shadow-copier")
        buffers = [
            _StagingBuffer(
                torch.empty(image_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)
            )
            for _ in range(_NUM_BUFFERS)
        ]
        self._buffers = itertools.cycle(buffers)
        # The step thread copies too, what a step needs at once.
        self._lock = threading.Lock()

    def begin_step(self) -> None:
        """See `SlotWriter`."""
        self._step_stream = torch.cuda.current_stream(self._device)

    def begin(self, slot: int, image: SlotImage) -> SlotFill:
        """See `SlotWriter`."""
        last_use = self._step_stream.record_event()
        copy = self._copier.submit(self._copy_beside, slot, image, last_use)
        return _StreamFill(copy, lambda: self.write(slot, image))

    def write(self, slot: int, image: SlotImage) -> None:
        """See `SlotWriter`."""
        with self._allow_sync():
            self._copy_on(torch.cuda.current_stream(self._device), slot, image)

    def _copy_beside(
        self, slot: int, image: SlotImage, last_use: torch.cuda.Event
    ) -> torch.cuda.Event:
        self._stream.wait_event(last_use)
        return self._copy_on(self._stream, slot, image)

    def _copy_on(self, stream: torch.cuda.Stream, slot: int, image: SlotImage) -> torch.cuda.Event:
        """Copy an image into a buffer, start the copy from there, and return the event of its end."""
        with self._lock:
            buffer = next(self._buffers)
            if buffer.read is not None:
                buffer.read.synchronize()
            _copy_pieces(buffer.memory, image.memory, self._threads)
            with torch.cuda.stream(stream):
                self._stacks.write(slot, image.at(buffer.memory))
                buffer.read = stream.record_event()
            return buffer.read


@dataclass(slots=True)
class _StagingBuffer:
    """Pinned memory for one image at a time; `read` is the event after which it may be written again."""

    memory: torch.Tensor
    read: torch.cuda.Event | None = None


def _copy_pieces(target: torch.Tensor, source: torch.Tensor, threads: Executor) -> None:
    # NumPy copies without the interpreter and in one thread for each piece.
    to, of = target.numpy(), source.numpy()
    pieces = [slice(at, min(at + _PIECE_BYTES, of.size)) for at in range(0, of.size, _PIECE_BYTES)]
    for _ in threads.map(lambda piece: np.copyto(to[piece], of[piece]), pieces):
        pass


class _StreamFill:
    def __init__(self, copy: Future[torch.cuda.Event], write: Callable[[], None]) -> None:
        self._copy = copy
        self._write = write

    def is_done(self) -> bool:
        if not self._copy.done():
            return False
        # An error is found by who joins.
        return self._copy.exception() is not None or bool(self._copy.result().query())  # type: ignore[no-untyped-call]

    def join(self) -> None:
        # Still queued behind somebody's copy: the step must not wait for that.
        if self._copy.cancel():
            self._write()
        else:
            torch.cuda.current_stream().wait_event(self._copy.result())


class ThreadWriter:
    """Copies in a thread of `executor`: the step thread never waits for a copy that it does not need itself."""

    def __init__(self, stacks: AdapterStacks, executor: Executor) -> None:
        self._stacks = stacks
        self._executor = executor

    def begin_step(self) -> None:
        """See `SlotWriter`; a CPU's steps are over when they return."""

    def begin(self, slot: int, image: SlotImage) -> SlotFill:
        """See `SlotWriter`."""
        copy = self._executor.submit(self._stacks.write, slot, image)
        return _ThreadFill(copy, self._stacks, slot, image)

    def write(self, slot: int, image: SlotImage) -> None:
        """See `SlotWriter`."""
        self._stacks.write(slot, image)


class _ThreadFill:
    def __init__(
        self, copy: Future[None], stacks: AdapterStacks, slot: int, image: SlotImage
    ) -> None:
        self._copy = copy
        self._stacks = stacks
        self._slot = slot
        self._image = image

    def is_done(self) -> bool:
        return self._copy.done()

    def join(self) -> None:
        # Still queued behind somebody's reading: the step must not wait for that.
        if self._copy.cancel():
            self._stacks.write(self._slot, self._image)
        else:
            self._copy.result()
