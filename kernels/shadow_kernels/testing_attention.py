"""Calls of `decode_attention` for its tests and its benchmark: sequences in a paged cache of keys and values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shadow_kernels.ops.decode_attention.reference import decode_attention_reference

_SPARE_ROWS = 2  # of seq_lens and block_table


@dataclass(frozen=True)
class Sizes:
    """Of a model's attention and its cache."""

    num_heads: int = 8
    num_kv_heads: int = 2
    head_size: int = 128
    page_size: int = 16


@dataclass(frozen=True)
class DecodeCase:
    """Arguments of one call: pages in random order; NaN behind each sequence, in unused pages, beside the queries.

    Attributes:
        query, key_cache, value_cache, block_table, seq_lens, scale: as in `shadow_kernels.decode_attention`.
    """

    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    block_table: torch.Tensor
    seq_lens: torch.Tensor
    scale: float

    @property
    def arguments(
        self,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float]:
        """Return them in the operator's order."""
        return (
            self.query,
            self.key_cache,
            self.value_cache,
            self.block_table,
            self.seq_lens,
            self.scale,
        )

    def expected(self) -> torch.Tensor:
        """Return (T, H, D) as the fp64 oracle has it."""
        return decode_attention_reference(*self.arguments)

    def row(self, number: int) -> DecodeCase:
        """Return the call for one sequence alone."""
        rows = slice(number, number + 1)
        return dataclasses.replace(
            self,
            query=self.query[rows],
            block_table=self.block_table[rows],
            seq_lens=self.seq_lens[rows],
        )


def make_decode_case(
    seq_lens: Sequence[int],
    sizes: Sizes | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
    heads_outside: bool = False,
    sharpness: float = 1.0,
    seed: int = 0,
) -> DecodeCase:
    """Build a call.

    Args:
        seq_lens: tokens of each sequence, the new one included.
        sizes: of the model; the default's where None.
        dtype: bf16 or fp16.
        device: of the tensors.
        heads_outside: a page holds its tokens head by head instead of its heads token by token.
        sharpness: factor on the scores: with 1 all tokens count, with 20 one or two.
        seed: of the numbers.
    """
    sizes = sizes or Sizes()
    generator = torch.Generator(device=device).manual_seed(seed)
    pages = [-(-length // sizes.page_size) for length in seq_lens]
    cache = _make_cache(sum(pages) + 3, sizes, dtype, generator, heads_outside)
    block_table, free = _hand_out(pages, len(cache), generator)
    _poison(cache, block_table, free, seq_lens, sizes)
    wide = torch.full(
        (len(seq_lens), sizes.num_heads + 2, sizes.head_size),
        torch.nan,
        dtype=dtype,
        device=device,
    )
    query = wide[:, 1:-1]
    query.copy_(torch.randn(query.shape, generator=generator, device=device))
    lengths = torch.tensor([*seq_lens, *[1 << 20] * _SPARE_ROWS], dtype=torch.int32, device=device)
    keys, values = cache.split(sizes.head_size, dim=-1)
    return DecodeCase(query, keys, values, block_table, lengths, sharpness * sizes.head_size**-0.5)


def _make_cache(
    num_pages: int,
    sizes: Sizes,
    dtype: torch.dtype,
    generator: torch.Generator,
    heads_outside: bool,
) -> torch.Tensor:
    """Return (pages, page_size, kv_heads, 2 D), keys and values of a token side by side, as vLLM has them."""
    shape = [sizes.page_size, sizes.num_kv_heads]
    if heads_outside:
        shape.reverse()
    cache = torch.randn(
        num_pages, *shape, 2 * sizes.head_size, generator=generator, device=generator.device
    )
    cache = cache.to(dtype)
    return cache.transpose(1, 2) if heads_outside else cache


def _hand_out(
    pages: list[int], num_pages: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return block_table and the pages that nobody has."""
    order = torch.randperm(num_pages, generator=generator, device=generator.device).int()
    # what no sequence uses names no page that there is
    table = torch.full(
        (len(pages) + _SPARE_ROWS, max(pages) + 2),
        1 << 28,
        dtype=torch.int32,
        device=generator.device,
    )
    first = 0
    for number, count in enumerate(pages):
        table[number, :count] = order[first : first + count]
        first += count
    return table, order[first:]


def _poison(
    cache: torch.Tensor,
    block_table: torch.Tensor,
    free: torch.Tensor,
    seq_lens: Sequence[int],
    sizes: Sizes,
) -> None:
    cache[free.long()] = torch.nan
    for number, length in enumerate(seq_lens):
        if length % sizes.page_size:
            last = int(block_table[number, length // sizes.page_size])
            cache[last, length % sizes.page_size :] = torch.nan
