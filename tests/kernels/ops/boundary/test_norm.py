"""`boundary_rms_norm_` as an operator, on the CPU: torch's own norm behind the boundary."""

from types import SimpleNamespace

import pytest
import torch

import shadow_kernels
from shadow_kernels import ShapeError, UnsupportedDtypeError, dispatch
from shadow_kernels.ops.boundary import cuda
from shadow_kernels.ops.boundary.norm import add_rms_norm_
from shadow_kernels.testing import (
    MIXED_FLAGS,
    PAPER_FLAGS,
    POPULARITIES,
    TOLERANCE,
    assert_same_bits,
    make_boundary_norm_case,
    popularity_slots,
)

NUM_SLOTS = 7


def make_case(popularity="uniform", num_tokens=21, **options):
    slots = popularity_slots(popularity, num_tokens, NUM_SLOTS, seed=5)
    return make_boundary_norm_case(slots, num_adapter_slots=NUM_SLOTS, **options)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("popularity", POPULARITIES)
def test_every_row_has_a_norm(popularity, dtype):
    case = make_case(popularity, hidden_size=328, dtype=dtype, flags=MIXED_FLAGS)
    case.assert_correct(case.run())


def test_it_is_the_boundary_and_then_the_norm():
    case = make_case(dtype=torch.bfloat16, flags=[PAPER_FLAGS])
    norm, residual, state = case.run("cpu")
    hidden, own_state = case.boundary.run("cpu")
    own_residual = case.boundary.residual.clone()
    add_rms_norm_(hidden, own_residual, case.rms_weight, case.rms_eps)
    for name, actual, expected in (
        ("norm", norm, hidden),
        ("residual", residual, own_residual),
        ("state", state, own_state),
    ):
        assert_same_bits(actual, expected, name)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_the_norm_rounds_once(dtype):
    case = make_case("base_only", dtype=dtype)
    hidden, residual = case.boundary.hidden.float(), case.boundary.residual.float()
    total = hidden + residual
    scale = torch.rsqrt(total.square().mean(1, keepdim=True) + case.rms_eps)
    norm, _, _ = case.run()
    assert_same_bits(norm, (total * scale * case.rms_weight.float()).to(dtype), "the norm")


@pytest.fixture
def device(monkeypatch):
    """A backend in place of the CPU's that notes what it is asked for."""
    calls = []
    backend = SimpleNamespace(takes_norm=lambda *_: True, has_kernel_for=lambda *_: True)
    for name in ("boundary_", "boundary_rms_norm_", "add_rms_norm_"):
        setattr(backend, name, lambda *_, name=name: calls.append(name))
    backend.calls = calls
    monkeypatch.setattr(dispatch, "get_backend", lambda *_: backend)
    return backend


def test_a_backend_with_both_kernels_is_asked_once(device):
    make_case("base_mixed").run()
    assert device.calls == ["boundary_rms_norm_"]


def test_a_step_without_adapters_has_the_norm_alone(device):
    make_case("base_only").run()
    assert device.calls == ["add_rms_norm_"]


def test_the_norm_follows_a_boundary_that_another_backend_does(device):
    device.has_kernel_for = lambda *_: False
    make_case("base_mixed").run()
    assert device.calls == ["boundary_", "add_rms_norm_"]


def test_torch_has_the_norm_of_rows_that_the_backend_does_not_take(device):
    device.takes_norm = lambda *_: False
    case = make_case("base_mixed")
    norm, _, _ = case.run()
    assert device.calls == ["boundary_"]
    assert not torch.equal(norm, case.boundary.hidden)


def test_rows_on_16_bytes_are_the_library_s(monkeypatch):
    monkeypatch.setattr(cuda, "has_norm_for", lambda *_: True)
    rows = torch.zeros(4, 1032, dtype=torch.bfloat16)
    whole, beside = rows[:, :1024], rows[:, 1:1025]
    narrow = torch.zeros(4, 1028, dtype=torch.bfloat16)[:, :1024]
    weight = torch.ones(1032, dtype=torch.bfloat16)
    assert cuda.takes_norm(whole, whole, weight[:1024])
    assert not cuda.takes_norm(beside, whole, weight[:1024])
    assert not cuda.takes_norm(whole, narrow, weight[:1024])
    assert not cuda.takes_norm(whole, whole, weight[1:1025])


def test_a_row_without_adapter_has_the_same_bits_in_every_batch():
    case = make_case("base_mixed", dtype=torch.bfloat16)
    is_base = case.boundary.token_slots < 0
    mixed = case.run()
    case.boundary.segments.fill(case.boundary.token_slots * 0 - 1)
    for name, alone, beside in zip(("norm", "residual"), case.run(), mixed, strict=False):
        assert_same_bits(beside[is_base], alone[is_base], name)


def test_what_the_operator_mutates_is_declared():
    case = make_case(num_tokens=5)
    tensors = case.guarded_tensors()
    segments, weights = case.boundary.segments, case.boundary.weights
    torch.library.opcheck(
        torch.ops.shadow.boundary_rms_norm_.default,
        (*tensors, *segments.grouping, *weights, case.rms_weight, case.rms_eps),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


@pytest.mark.parametrize(
    ("name", "wrong", "error"),
    [
        ("rms_weight", torch.ones(255), ShapeError),
        ("rms_weight", torch.ones(256, dtype=torch.float64), UnsupportedDtypeError),
        ("rms_weight", torch.ones(512)[::2], ShapeError),
        ("residual", torch.ones(20, 256), ShapeError),
        ("hidden", torch.ones(21, 2, 128), ShapeError),
    ],
)
def test_wrong_arguments_are_named(name, wrong, error):
    case = make_case()
    hidden, residual, state = case.guarded_tensors()
    tensors = {"hidden": hidden, "residual": residual, "rms_weight": case.rms_weight, name: wrong}
    with pytest.raises(error, match=name):
        shadow_kernels.boundary_rms_norm_(
            tensors["hidden"], tensors["residual"], state, case.boundary.segments.grouping,
            case.boundary.weights, tensors["rms_weight"], 1e-6,
        )  # fmt: skip


def test_only_a_device_with_a_kernel_takes_the_norm():
    assert not shadow_kernels.has_fast_rms_norm("cpu", torch.bfloat16, 4096)
    assert not shadow_kernels.has_fast_rms_norm("xpu", torch.bfloat16, 4096)
