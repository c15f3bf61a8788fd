"""Copying an image into a slot while steps run on other slots.

Runs in: GPU worker. The step thread begins and ends copies; on a CPU the copying itself is a loader thread's.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch

from shadow_runtime.slots.image import SlotImage
from shadow_runtime.slots.stack import AdapterStacks


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
    """Copies from pinned memory on a CUDA stream of its own.

    A slot's previous adapter may still be read by a step that runs on the device, so the copy waits for what the
    steps' stream had been given when it began. The other way round, steps wait for the copy's event only when they need
    its adapter before it has completed.
    """

    def __init__(
        self,
        stacks: AdapterStacks,
        device: torch.device,
        allow_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Make the stream.

        Args:
            stacks: what is written.
            device: where they are.
            allow_sync: entered around copies, which wait for the host where an image is not pinned.
        """
        self._allow_sync = allow_sync
        self._stacks = stacks
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._step_stream = torch.cuda.current_stream(device)
        self._device = device

    def begin_step(self) -> None:
        """See `SlotWriter`."""
        self._step_stream = torch.cuda.current_stream(self._device)

    def begin(self, slot: int, image: SlotImage) -> SlotFill:
        """See `SlotWriter`."""
        self._stream.wait_stream(self._step_stream)
        with self._allow_sync(), torch.cuda.stream(self._stream):
            self._stacks.write(slot, image)
        return _StreamFill(self._stream.record_event(), image)

    def write(self, slot: int, image: SlotImage) -> None:
        """See `SlotWriter`."""
        with self._allow_sync():
            self._stacks.write(slot, image)


class _StreamFill:
    def __init__(self, event: torch.cuda.Event, image: SlotImage) -> None:
        self._event = event
        # The device reads the host image until then, also when the adapter is unloaded meanwhile.
        self._image = image

    def is_done(self) -> bool:
        return bool(self._event.query())  # type: ignore[no-untyped-call]

    def join(self) -> None:
        torch.cuda.current_stream().wait_event(self._event)


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
