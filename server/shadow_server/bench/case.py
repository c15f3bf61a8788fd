"""What a benchmark compares: the bare base first, then the same load with adapters.

Runs in: the command's own process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shadow_server.bench.popularity import Popularity

SWEEP = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Shape:
    """Lengths of a request in tokens; `name` says what it leans on."""

    name: str
    prompt_tokens: int
    output_tokens: int


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("mixed", 64, 64),
        Shape("decode", 16, 256),
        Shape("prefill", 1024, 8),
    )
}


@dataclass(frozen=True, slots=True)
class Case:
    """One load.

    Attributes:
        shape: of its requests.
        adapters: that they ask for; none for the base.
        popularity: how often which.
        has_churn: whether another adapter is published every second meanwhile.
    """

    shape: Shape
    adapters: tuple[str, ...] = ()
    popularity: Popularity = "distinct"
    has_churn: bool = False

    @property
    def name(self) -> str:
        """One word for tables and files."""
        if not self.adapters:
            return f"{self.shape.name}/base"
        churn = "+churn" if self.has_churn else ""
        return f"{self.shape.name}/{self.popularity}-{len(self.adapters)}{churn}"


def plan(
    names: Sequence[str],
    shapes: Sequence[Shape],
    *,
    counts: Sequence[int] = SWEEP,
    popularities: Sequence[Popularity] = ("distinct",),
    num_slots: int | None = None,
    has_churn: bool = False,
) -> list[Case]:
    """Return the cases in order, the base in front of those of each shape.

    Args:
        names: of adapters that the server has; a count over their number is left out.
        shapes: lengths of requests.
        counts: distinct adapters.
        popularities: each of them is combined with each count; a single adapter has only one.
        num_slots: adds a case of twice as many adapters, as far as there are; None for none.
        has_churn: adds the largest case again, with a publish a second.
    """
    wanted = {count for count in counts if count <= len(names)}
    if num_slots is not None and 2 * num_slots <= len(names):
        wanted.add(2 * num_slots)
    cases = []
    for shape in shapes:
        cases.append(Case(shape))
        for count in sorted(wanted):
            kinds = popularities if count > 1 else popularities[:1]
            cases += [Case(shape, tuple(names[:count]), kind) for kind in kinds]
        if has_churn and cases[-1].adapters:
            last = cases[-1]
            cases.append(Case(shape, last.adapters, last.popularity, has_churn=True))
    return cases
