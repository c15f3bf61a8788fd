"""Tokens of one step grouped by adapter slot: persistent buffers that every shadow operator reads.

The host fills them once a step and the operators of all layers share them:

    adapter_slots   slot of each token                      0 -1  2  0  0 -1  2      (NO_ADAPTER = -1)
    token_order     token indices, stable by slot           0  3  4  2  6
    slot_starts     token_order[starts[a]:starts[a+1]]      0  3  3  5               (A = 3)
    tiles           [slot, start] rows of <= 16 tokens      [0 0] [2 3] [-1 2] ...   (2 tiles are used)
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
import torch

NO_ADAPTER = -1
"""Slot index of a token that belongs to no adapter."""

TILE_TOKENS = 16
"""Tokens that one tile covers at most: the smallest row count of a tensor-core product."""

_ALIGNMENT = 64  # int32 elements: every buffer starts on a 256-byte boundary
_NUM_STAGING_BUFFERS = 2

Buffer = TypeVar("Buffer", torch.Tensor, np.ndarray)


def max_tiles(num_tokens: int, num_adapter_slots: int) -> int:
    """Return the static bound on used tiles: full tiles plus one partial tile per slot that can hold a token."""
    return -(-num_tokens // TILE_TOKENS) + min(num_adapter_slots, num_tokens)


class Grouping(NamedTuple):
    """The tensors of `StepSegments`, in the order in which every operator's schema takes them."""

    adapter_slots: torch.Tensor
    token_order: torch.Tensor
    slot_starts: torch.Tensor
    tiles: torch.Tensor
    host_counts: torch.Tensor


class _Staging:
    """One pinned host copy of the packed buffer and the event that says when its last upload has finished."""

    def __init__(self, num_elements: int) -> None:
        self.tensor = torch.empty(num_elements, dtype=torch.int32, device="cpu", pin_memory=True)
        self.array = self.tensor.numpy()
        self.uploaded = torch.cuda.Event()


class StepSegments:
    """Which adapter slot every token of the current step belongs to, grouped for the operators.

    Attributes:
        adapter_slots: (max_tokens,) int32 in [-1, num_adapter_slots), on `device`; -1 beyond the step's tokens.
        token_order: (max_tokens,) int32, on `device`; the first `num_adapter_tokens` entries are the indices of the
            tokens with an adapter, stably sorted by slot; the rest is -1, which kernels may look at and leave.
        slot_starts: (num_adapter_slots + 1,) int32, on `device`; slot a owns
            token_order[slot_starts[a]:slot_starts[a + 1]].
        tiles: (max_tiles(max_tokens, num_adapter_slots), 2) int32, on `device`; rows [slot, start] in ascending order,
            each covers token_order[start:min(start + TILE_TOKENS, slot_starts[slot + 1])]; unused rows are
            [-1, number of used rows], so that a kernel that looks beyond them knows where they end.
        host_counts: (2,) int32 on the CPU: tokens with an adapter, used tiles. Operators read it on the host to leave
            early, so it never costs a device synchronisation.

    Invariants (checked by `check_integrity()`):
        Every tensor keeps its address for the life of the object, so CUDA graphs may capture it. The tokens with an
        adapter appear in `token_order` exactly once. `slot_starts` never decreases and ends at `num_adapter_tokens`.
        Tiles cover every such token once and hold one slot each.

    Ownership: one worker's step thread. `fill` must run on the stream that later runs the operators: the upload is
    ordered behind the previous step's kernels by the stream alone. Uploads start in pinned buffers used in turn; a
    buffer is rewritten only after the event recorded behind its last upload, which by then has passed.

    Failure behaviour: `fill` validates first; on error nothing is changed.
    """

    def __init__(self, max_tokens: int, num_adapter_slots: int, device: torch.device | str) -> None:
        """Allocate the buffers for at most `max_tokens` tokens a step; they start without any adapter."""
        if max_tokens < 1 or num_adapter_slots < 1:
            raise ValueError(
                f"max_tokens and num_adapter_slots must be positive, got {max_tokens} and {num_adapter_slots}"
            )
        self.max_tokens = max_tokens
        self.num_adapter_slots = num_adapter_slots
        self.device = torch.device(device)
        self._sizes = (
            max_tokens,
            max_tokens,
            num_adapter_slots + 1,
            2 * max_tiles(max_tokens, num_adapter_slots),
        )
        self._packed = torch.empty(_packed_size(self._sizes), dtype=torch.int32, device=self.device)
        self.adapter_slots, self.token_order, self.slot_starts, flat_tiles = _split(
            self._packed, self._sizes
        )
        self.tiles = flat_tiles.view(-1, 2)
        self.host_counts = torch.zeros(2, dtype=torch.int32, device="cpu")
        self._counts = self.host_counts.numpy()
        num_staging = _NUM_STAGING_BUFFERS if self._needs_upload else 0
        self._staging = [_Staging(len(self._packed)) for _ in range(num_staging)]
        self._next_staging = 0
        self._filled_with: np.ndarray | None = None
        self.fill(np.full(0, NO_ADAPTER))

    @property
    def _needs_upload(self) -> bool:
        return self.device.type == "cuda"

    @property
    def num_adapter_tokens(self) -> int:
        """Tokens of the current step that belong to an adapter."""
        return int(self._counts[0])

    @property
    def grouping(self) -> Grouping:
        """The buffers in the operators' argument order; the same tensors at every call."""
        return Grouping(
            self.adapter_slots, self.token_order, self.slot_starts, self.tiles, self.host_counts
        )

    def fill(self, token_slots: np.ndarray) -> None:
        """Group the step's tokens. Host work only, no synchronisation; nothing is written if nothing changed.

        Args:
            token_slots: (num_tokens,) integers in [-1, num_adapter_slots), num_tokens <= max_tokens.

        Raises:
            ValueError: token_slots is not a one-dimensional integer array, too long or out of range.
        """
        self._validate(token_slots)
        if self._is_current(token_slots):
            return
        if not self._needs_upload:
            self._write(self._packed.numpy(), token_slots)
        else:
            self._upload(token_slots)
        self._filled_with = token_slots.copy()

    def check_integrity(self) -> None:
        """Verify every invariant against the device's contents. Synchronises; for tests and idle checks.

        Raises:
            RuntimeError: an invariant does not hold; the message names it.
        """
        slots, order, starts = (
            t.cpu().numpy() for t in (self.adapter_slots, self.token_order, self.slot_starts)
        )
        tiles = self.tiles.cpu().numpy()
        num_tokens, num_used = (int(count) for count in self._counts)
        used = tiles[:num_used]
        expected = np.flatnonzero(slots != NO_ADAPTER)
        ends = np.minimum(used[:, 1] + TILE_TOKENS, starts[used[:, 0] + 1])
        checks = {
            "adapter_slots is in range": slots.min() >= NO_ADAPTER
            and slots.max() < self.num_adapter_slots,
            "host_counts counts the adapter tokens": len(expected) == num_tokens == starts[-1],
            "token_order holds each adapter token once": np.array_equal(
                np.sort(order[:num_tokens]), expected
            ),
            "slot_starts never decreases": starts[0] == 0 and bool(np.all(np.diff(starts) >= 0)),
            "token_order is sorted by slot": np.array_equal(
                slots[order[:num_tokens]],
                np.repeat(np.arange(self.num_adapter_slots), np.diff(starts)),
            ),
            "tiles cover each adapter token once": np.array_equal(
                np.concatenate(
                    [np.arange(0)]
                    + [np.arange(s, e) for s, e in zip(used[:, 1], ends, strict=True)]
                ),
                np.arange(num_tokens),
            ),
            "used tiles have a slot": bool(np.all(used[:, 0] != NO_ADAPTER)),
            "unused tiles have no slot": bool(np.all(tiles[num_used:, 0] == NO_ADAPTER)),
            "unused tiles say how many are used": bool(np.all(tiles[num_used:, 1] == num_used)),
        }
        broken = [invariant for invariant, holds in checks.items() if not holds]
        if broken:
            raise RuntimeError(f"StepSegments is inconsistent, violated: {'; '.join(broken)}")

    def _validate(self, token_slots: np.ndarray) -> None:
        if token_slots.ndim != 1 or not np.issubdtype(token_slots.dtype, np.integer):
            raise ValueError(
                f"token_slots must be a 1-d integer array, got {token_slots.dtype} of shape {token_slots.shape}"
            )
        if len(token_slots) > self.max_tokens:
            raise ValueError(
                f"token_slots holds {len(token_slots)} tokens, at most {self.max_tokens} fit"
            )
        if (
            len(token_slots)
            and not NO_ADAPTER <= token_slots.min() <= token_slots.max() < self.num_adapter_slots
        ):
            raise ValueError(f"token_slots must lie in [-1, {self.num_adapter_slots})")

    def _is_current(self, token_slots: np.ndarray) -> bool:
        """Whether the buffers already say this: a steady decode batch, or again a step without adapters."""
        if self._filled_with is None:
            return False
        if self.num_adapter_tokens == 0:
            return not len(token_slots) or int(token_slots.max()) == NO_ADAPTER
        return np.array_equal(token_slots, self._filled_with)

    def _upload(self, token_slots: np.ndarray) -> None:
        staging = self._staging[self._next_staging]
        self._next_staging = (self._next_staging + 1) % len(self._staging)
        staging.uploaded.synchronize()  # returns at once unless the device is a whole ring of steps behind
        self._write(staging.array, token_slots)
        self._packed.copy_(staging.tensor, non_blocking=True)
        staging.uploaded.record()

    def _write(self, packed: np.ndarray, token_slots: np.ndarray) -> None:
        slots, order, starts, tiles = _split(packed, self._sizes)
        slots[: len(token_slots)] = token_slots
        slots[len(token_slots) :] = NO_ADAPTER
        tokens = np.flatnonzero(slots >= 0)
        used_slots = slots[tokens]
        # numpy sorts 16-bit keys by radix, several times faster than 32-bit ones
        keys = used_slots.astype(np.int16) if self.num_adapter_slots < 2**15 else used_slots
        order[: len(tokens)] = tokens[np.argsort(keys, kind="stable")]
        order[len(tokens) :] = NO_ADAPTER
        starts[0] = 0
        np.cumsum(np.bincount(used_slots, minlength=self.num_adapter_slots), out=starts[1:])
        self._counts[:] = len(tokens), _write_tiles(tiles.reshape(-1, 2), starts)


def _write_tiles(tiles: np.ndarray, starts: np.ndarray) -> int:
    """Write one row [slot, start] per tile and return how many there are."""
    tiles_of_slot = -(-np.diff(starts) // TILE_TOKENS)
    num_used = int(tiles_of_slot.sum())
    tile_slots = np.repeat(np.arange(len(tiles_of_slot)), tiles_of_slot)
    first_tile = np.cumsum(tiles_of_slot) - tiles_of_slot
    tiles[:num_used, 0] = tile_slots
    tiles[:num_used, 1] = starts[tile_slots] + TILE_TOKENS * (
        np.arange(num_used) - first_tile[tile_slots]
    )
    tiles[num_used:] = (NO_ADAPTER, num_used)
    return num_used


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _packed_size(sizes: tuple[int, ...]) -> int:
    return sum(_padded(size) for size in sizes)


def _split(packed: Buffer, sizes: tuple[int, ...]) -> list[Buffer]:
    """Return views of the packed buffer; one buffer means one upload a step."""
    views, offset = [], 0
    for size in sizes:
        views.append(packed[offset : offset + size])
        offset += _padded(size)
    return views
