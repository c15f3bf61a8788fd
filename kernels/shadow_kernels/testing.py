"""What tests and benchmarks of the operators share: input factories, poison, tolerances, the closeness assert.

Inputs are zero-mean and seeded. Everything that a correct operator never reads holds NaN: unused slots, neighbouring
layers, tensors that a flag switches off, rows of tokens without adapter, guard rows around the buffers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from shadow_kernels import boundary_, boundary_rms_norm_
from shadow_kernels.dispatch import Backend
from shadow_kernels.ops.boundary import BoundaryFlag, BoundaryWeights
from shadow_kernels.ops.boundary.reference import add_rms_norm_reference, boundary_reference
from shadow_kernels.segments import NO_ADAPTER, StepSegments

Popularity = Literal[
    "distinct", "identical", "uniform", "zipf", "skewed", "base_only", "base_mixed"
]
POPULARITIES: tuple[Popularity, ...] = get_args(Popularity)

TOLERANCE = {torch.float32: 1e-5, torch.float16: 6e-4, torch.bfloat16: 4e-3}
"""Worst-row relative RMS against an fp64 oracle: one rounding at the store plus fp32 sums, about twice the measured."""

_MAX_ABS_FACTOR = 8.0  # the largest of D errors against their RMS

PAPER_FLAGS = int(BoundaryFlag.INJECT | BoundaryFlag.UPDATE | BoundaryFlag.NORM)
PEFT_FLAGS = int(BoundaryFlag.INJECT | BoundaryFlag.UPDATE | BoundaryFlag.GELU | BoundaryFlag.BIAS)
MIXED_FLAGS = (PAPER_FLAGS, PEFT_FLAGS, int(BoundaryFlag.INJECT), PEFT_FLAGS & ~1, 31, 0)
"""One flag word per slot in turn: both formats, either half alone, everything at once, nothing."""

_GUARD_ROWS = 3
_NUM_LAYERS = 3
_LAYER = 1


def popularity_slots(
    popularity: Popularity, num_tokens: int, num_adapter_slots: int, seed: int
) -> np.ndarray:
    """Return (num_tokens,) int32 slots; but for identical, distinct and base_only, -1 and the last slot occur."""
    rng = np.random.default_rng(seed)
    last = num_adapter_slots - 1
    if popularity == "base_only":
        return np.full(num_tokens, NO_ADAPTER, np.int32)
    if popularity == "identical":
        return np.full(num_tokens, last, np.int32)
    if popularity == "distinct":
        return (last - np.arange(num_tokens) % num_adapter_slots).astype(np.int32)
    slots = _draw(popularity, num_tokens, num_adapter_slots, rng)
    if num_tokens > 1:
        slots[rng.choice(num_tokens, 2, replace=False)] = (last, NO_ADAPTER)
    return slots


def _draw(
    popularity: Popularity, num_tokens: int, num_slots: int, rng: np.random.Generator
) -> np.ndarray:
    uniform = rng.integers(0, num_slots, num_tokens)
    if popularity == "zipf":
        uniform = np.minimum(rng.zipf(1.5, num_tokens) - 1, num_slots - 1)
    elif popularity == "skewed":
        uniform = np.where(rng.random(num_tokens) < 0.9, 0, uniform)
    elif popularity == "base_mixed":
        uniform = np.where(rng.random(num_tokens) < 0.5, NO_ADAPTER, uniform)
    return uniform.astype(np.int32)


def guarded(values: torch.Tensor) -> torch.Tensor:
    """Return a copy of (rows, columns) `values` inside a buffer with NaN rows on both sides."""
    rows, columns = values.shape
    buffer = values.new_full((rows + 2 * _GUARD_ROWS, columns), torch.nan)
    view = buffer[_GUARD_ROWS : _GUARD_ROWS + rows]
    view.copy_(values)
    return view


def assert_guards_intact(view: torch.Tensor) -> None:
    """Raise AssertionError if a guard row around a `guarded` tensor was written."""
    guards = torch.as_strided(
        view, (view.shape[0] + 2 * _GUARD_ROWS, view.shape[1]), view.stride(), 0
    ).clone()
    guards[_GUARD_ROWS:-_GUARD_ROWS] = torch.nan
    if not guards.isnan().all():
        raise AssertionError("a row beside the tensor was written")


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    """Raise AssertionError unless both hold the same bits; NaN equals the same NaN."""
    integer = {2: torch.int16, 4: torch.int32}[actual.element_size()]
    if not torch.equal(actual.contiguous().view(integer), expected.contiguous().view(integer)):
        raise AssertionError(f"{name} was changed")


def worst_row_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest relative RMS error of a row; rows of expected zeros count absolutely."""
    if not actual.numel():
        return 0.0
    error = (actual.double() - expected).square().mean(1).sqrt()
    norm = expected.square().mean(1).sqrt()
    return float((error / torch.where(norm > 0, norm, 1.0)).max())


def _worst_element_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest error over its row's RMS, less what one rounding of the element itself explains."""
    if not actual.numel():
        return 0.0
    rounding = 0.5 * torch.finfo(actual.dtype).eps * expected.abs()
    error = (actual.double() - expected).abs() - rounding
    norm = expected.square().mean(1, keepdim=True).sqrt()
    return float((error / torch.where(norm > 0, norm, 1.0)).max())


def assert_close(
    actual: torch.Tensor, expected: torch.Tensor, name: str, *, amplification: float = 1.0
) -> float:
    """Compare with an fp64 oracle row by row; return the worst row's relative RMS error.

    Args:
        actual: (rows, columns) bf16|fp16|fp32.
        expected: the same shape, fp64.
        name: what is compared, for the message.
        amplification: factor on the tolerance of actual's dtype.

    Raises:
        AssertionError: NaN or Inf, worst-row relative RMS or scaled maximum over the tolerance.
    """
    if actual.shape != expected.shape or not actual.isfinite().all():
        raise AssertionError(f"{name} holds NaN or Inf, or has shape {tuple(actual.shape)}")
    tolerance = TOLERANCE[actual.dtype] * amplification
    worst = worst_row_error(actual, expected)
    if worst > tolerance:
        raise AssertionError(
            f"{name}: worst row is off by {worst:.2e} of its RMS, allowed {tolerance:.1e}"
        )
    largest = _worst_element_error(actual, expected)
    if largest > _MAX_ABS_FACTOR * tolerance:
        raise AssertionError(f"{name}: one element is off by {largest:.2e} of its row's RMS")
    return worst


@dataclass
class BoundaryCase:
    """One call of `boundary_`: poisoned inputs, and the rows that it may change.

    Attributes:
        hidden, residual, state: the tensors of the call; state has more rows than hidden.
        token_slots: (num_tokens,) int32 slots of the tokens.
        segments, weights: the step's grouping and the layer's weights.
    """

    hidden: torch.Tensor
    residual: torch.Tensor | None
    state: torch.Tensor
    token_slots: np.ndarray
    segments: StepSegments
    weights: BoundaryWeights

    def run(self, backend: Backend = "auto") -> tuple[torch.Tensor, torch.Tensor]:
        """Return (hidden, state) after the operator ran on guarded copies; the case itself stays."""
        hidden, state = guarded(self.hidden), guarded(self.state)
        boundary_(
            hidden, self.residual, state, self.segments.grouping, self.weights, backend=backend
        )
        assert_guards_intact(hidden)
        assert_guards_intact(state)
        return hidden, state

    def expected(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (hidden, state) as the fp64 oracle has them."""
        slots = torch.from_numpy(self.token_slots)
        return boundary_reference(self.hidden, self.residual, self.state, slots, self.weights)

    def with_weights(self, **changes: torch.Tensor) -> BoundaryCase:
        """Return the same call with some weight tensors replaced."""
        return dataclasses.replace(self, weights=self.weights._replace(**changes))

    def assert_correct(
        self,
        results: tuple[torch.Tensor, torch.Tensor],
        oracle: tuple[torch.Tensor, torch.Tensor],
        amplification: float = 1.0,
    ) -> float:
        """Compare a run with the oracle: values, deltas, and untouched rows bit for bit. Returns the worst error.

        Raises:
            AssertionError: as `assert_close` and `assert_same_bits`.
        """
        before = (self.hidden, self.state)
        changed = torch.from_numpy(np.flatnonzero(self.token_slots != NO_ADAPTER)).to(
            self.hidden.device
        )
        worst = 0.0
        for name, actual, expected, old in zip(
            ("hidden", "state"), results, oracle, before, strict=True
        ):
            kept = torch.ones(len(old), dtype=torch.bool, device=old.device)
            kept[changed] = False
            assert_same_bits(actual[kept], old[kept], f"a {name} row without adapter")
            worst = max(
                worst,
                assert_close(actual[changed], expected[changed], name, amplification=amplification),
            )
            _assert_delta_close(
                actual[changed], expected[changed], old[changed], f"{name} delta", amplification
            )
        return worst


@dataclass
class BoundaryNormCase:
    """One call of `boundary_rms_norm_`.

    Attributes:
        boundary: the call without the norm. Its residual is there, and rows without an adapter hold numbers in hidden
            and residual: they have a norm, too. Their state holds NaN.
        rms_weight, rms_eps: the norm's.
    """

    boundary: BoundaryCase
    rms_weight: torch.Tensor
    rms_eps: float

    def guarded_tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return guarded copies of hidden, residual and state."""
        case = self.boundary
        return guarded(case.hidden), guarded(case.residual), guarded(case.state)

    def run(self, backend: Backend = "auto") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (hidden, residual, state) after the operator ran on guarded copies; the case itself stays."""
        results = hidden, residual, state = self.guarded_tensors()
        case = self.boundary
        boundary_rms_norm_(
            hidden, residual, state, case.segments.grouping, case.weights,
            self.rms_weight, self.rms_eps, backend=backend,
        )  # fmt: skip
        for tensor in results:
            assert_guards_intact(tensor)
        return results

    def expected(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (hidden, residual, state) as the fp64 oracle has them."""
        hidden, state = self.boundary.expected()
        norm, total = add_rms_norm_reference(
            hidden, self.boundary.residual, self.rms_weight, self.rms_eps
        )
        return norm, total, state

    def assert_correct(self, results: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> float:
        """Compare a run with the oracle, state rows without adapter bit for bit. Returns the worst error.

        Raises:
            AssertionError: as `assert_close` and `assert_same_bits`.
        """
        hidden, residual, state = results
        norm, total, new_state = self.expected()
        is_base = torch.from_numpy(self.boundary.token_slots == NO_ADAPTER).to(state.device)
        kept = torch.ones(len(state), dtype=torch.bool, device=state.device)
        kept[: len(is_base)] = is_base
        assert_same_bits(state[kept], self.boundary.state[kept], "a state row without adapter")
        return max(
            assert_close(hidden, norm, "the norm"),
            assert_close(residual, total, "residual"),
            assert_close(state[~kept], new_state[~kept], "state"),
        )


def make_boundary_norm_case(token_slots: np.ndarray, **options: Any) -> BoundaryNormCase:
    """Build a call of `boundary_rms_norm_`; options as in `make_boundary_case`.

    The norm's weights are zero-mean, and its epsilon is so large that it shows.
    """
    case = make_boundary_case(token_slots, **options)
    generator = torch.Generator().manual_seed(99)
    hidden = case.hidden
    is_base = torch.from_numpy(token_slots == NO_ADAPTER).to(hidden.device)
    for tensor in (hidden, case.residual):
        fresh = torch.randn(hidden.shape, generator=generator).to(hidden)
        tensor[is_base] = fresh[is_base]
    weight = torch.randn(hidden.shape[1], generator=generator).to(hidden)
    return BoundaryNormCase(case, weight, 0.1)


def _assert_delta_close(
    actual: torch.Tensor, expected: torch.Tensor, old: torch.Tensor, name: str, amplification: float
) -> None:
    """Compare what was added: the kept part must not hide an error beyond its own rounding."""
    delta = expected - old.double()
    size = delta.square().mean(1).sqrt()
    rows = size > 0
    if not rows.any():
        return
    error = (actual.double() - expected).square().mean(1).sqrt()
    tolerance = TOLERANCE[actual.dtype] * amplification
    allowed = tolerance * (size + old.double().square().mean(1).sqrt())
    excess = float((error[rows] / allowed[rows]).max())
    if excess > 1.0:
        raise AssertionError(f"{name}: worst row is {excess:.2f} times over its tolerance")


def make_boundary_case(
    token_slots: np.ndarray,
    *,
    num_adapter_slots: int,
    hidden_size: int = 256,
    rank: int = 16,
    gate_size: int = 8,
    dtype: torch.dtype = torch.float32,
    flags: Sequence[int] = MIXED_FLAGS,
    has_residual: bool = True,
    device: str = "cpu",
    seed: int = 0,
) -> BoundaryCase:
    """Build a call whose correction is as large as the hidden state, with NaN wherever nothing may be read."""
    generator = torch.Generator().manual_seed(seed)
    num_tokens = len(token_slots)
    segments = StepSegments(num_tokens + 5, num_adapter_slots, device)
    segments.fill(token_slots)
    base = torch.randn(num_tokens, hidden_size, generator=generator).to(dtype)
    state = torch.randn(num_tokens + 2, hidden_size, generator=generator).to(dtype)
    rows = torch.from_numpy(token_slots == NO_ADAPTER)
    base[rows] = torch.nan
    state[:num_tokens][rows] = torch.nan
    state[num_tokens:] = torch.nan
    # with a residual the base's own part of hidden is small, so that the delta is what the assert sees
    hidden = base * 0.1 if has_residual else base
    weights = _make_weights(
        token_slots, num_adapter_slots, (hidden_size, rank, gate_size), dtype, flags, generator
    )
    return BoundaryCase(
        hidden.to(device),
        (base * 0.9).to(device) if has_residual else None,
        state.to(device),
        token_slots,
        segments,
        BoundaryWeights(*(tensor.to(device) for tensor in weights)),
    )


def _make_weights(
    token_slots: np.ndarray,
    num_slots: int,
    sizes: tuple[int, int, int],
    dtype: torch.dtype,
    flags: Sequence[int],
    generator: torch.Generator,
) -> BoundaryWeights:
    D, R, G = sizes  # noqa: N806
    words = torch.tensor([flags[slot % len(flags)] for slot in range(num_slots)], dtype=torch.int32)
    is_used = torch.zeros(num_slots, dtype=torch.bool)
    is_used[torch.from_numpy(token_slots[token_slots >= 0]).long()] = True

    def stack(shape: tuple[int, ...], std: float, mean: float, needed: int) -> torch.Tensor:
        storage = torch.full((num_slots, _NUM_LAYERS, *shape), torch.nan, dtype=dtype)
        values = mean + std * torch.randn(num_slots, *shape, generator=generator)
        values[~(is_used & ((words & needed) == needed))] = torch.nan
        storage[:, _LAYER] = values.to(dtype)
        return storage[:, _LAYER]

    update, norm = int(BoundaryFlag.UPDATE), int(BoundaryFlag.UPDATE | BoundaryFlag.NORM)
    bias, inject = int(BoundaryFlag.UPDATE | BoundaryFlag.BIAS), int(BoundaryFlag.INJECT)
    return BoundaryWeights(
        flags=words,
        scale=torch.where(is_used, 0.5 + torch.rand(num_slots, generator=generator), torch.nan),
        norm_weight=stack((D,), 0.2, 1.0, norm),
        norm_bias=stack((D,), 0.2, 0.0, norm),
        update_in=stack((2, G, D), D**-0.5, 0.0, update),
        update_in_bias=stack((2, G), 0.5, 0.0, bias),
        update_out=stack((2, G, D), 2 * G**-0.5, 0.0, update),
        update_out_bias=stack((2, D), 0.5, 0.0, bias),
        down=stack((R, D), D**-0.5, 0.0, inject),
        up=stack((R, D), R**-0.5, 0.0, inject),
    )
