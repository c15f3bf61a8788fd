"""Who is asked next: how often clients want which adapter.

Runs in: the command's own process.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

Popularity = Literal["distinct", "identical", "uniform", "zipf"]
POPULARITIES: tuple[Popularity, ...] = get_args(Popularity)

_ZIPF_EXPONENT = 1.1


def draw(
    popularity: Popularity, adapters: Sequence[str], rng: random.Random
) -> Iterator[str | None]:
    """Yield the adapter of one request after another; None, the base, when there are no adapters.

    Args:
        popularity: "distinct" takes them in turn, "identical" always the first, "uniform" draws evenly, "zipf" draws
            the k-th with weight k^-1.1.
        adapters: names.
        rng: of the draws.
    """
    if not adapters:
        return itertools.repeat(None)
    if popularity == "identical":
        return itertools.repeat(adapters[0])
    if popularity == "distinct":
        return itertools.cycle(adapters)
    weights = [
        1.0 if popularity == "uniform" else rank**-_ZIPF_EXPONENT
        for rank in range(1, len(adapters) + 1)
    ]
    return (rng.choices(adapters, weights)[0] for _ in itertools.count())
