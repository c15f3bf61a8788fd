"""Registration, the choice of the backend, checks at the operator's door, and behaviour under torch.compile."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

import shadow_kernels
from shadow_kernels import (
    BackendUnavailableError,
    ShapeError,
    UnsupportedDtypeError,
    boundary_,
    compile_slot_linear,
    slot_linear,
)
from shadow_kernels.dispatch import get_backend, register_operators
from shadow_kernels.testing import (
    BoundaryCase,
    assert_same_bits,
    make_boundary_case,
    popularity_slots,
)

NUM_SLOTS = 4


@pytest.fixture
def case() -> BoundaryCase:
    slots = popularity_slots("uniform", 12, NUM_SLOTS, seed=1)
    return make_boundary_case(
        slots, num_adapter_slots=NUM_SLOTS, hidden_size=32, rank=3, gate_size=5
    )


def finite(case: BoundaryCase) -> BoundaryCase:
    """The case without its poison: tools that compare whole outputs cannot compare NaN."""
    weights = type(case.weights)(
        *(torch.nan_to_num(t) if t.is_floating_point() else t for t in case.weights)
    )
    plain = {
        name: torch.nan_to_num(getattr(case, name)) for name in ("hidden", "residual", "state")
    }
    return dataclasses.replace(case, weights=weights, **plain)


def boundary_args(case: BoundaryCase) -> tuple:
    return (case.hidden, case.residual, case.state, *case.segments.grouping, *case.weights)


def test_registration_is_idempotent():
    before = torch.ops.shadow.boundary_.default
    register_operators()
    assert torch.ops.shadow.boundary_.default is before


def test_import_initialises_no_device_and_no_compiler():
    code = (
        "import sys, shadow_kernels, torch; assert not torch.cuda.is_initialized();"
        "bad = {'shadow_kernels.ops.boundary.triton', 'shadow_kernels.ops.boundary.reference'} & set(sys.modules);"
        "assert not bad, bad"
    )
    path = str(next(iter(shadow_kernels.__path__))).removesuffix("/shadow_kernels")
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": path, "PATH": ""})


def test_public_names_are_sorted_and_exist():
    assert shadow_kernels.__all__ == sorted(
        shadow_kernels.__all__, key=lambda n: (not n.isupper(), n[0].islower(), n)
    )
    assert all(hasattr(shadow_kernels, name) for name in shadow_kernels.__all__)


def test_the_device_chooses_the_backend():
    assert get_backend("boundary", "auto", "cpu").__name__.endswith("boundary.cpu")
    assert get_backend("slot_linear", "cpu", "cpu").__name__.endswith("slot_linear.cpu")


@pytest.mark.skipif(
    "TRITON_INTERPRET" in __import__("os").environ, reason="the interpreter takes CPU tensors"
)
def test_an_explicit_backend_never_falls_back(case):
    with pytest.raises(BackendUnavailableError, match="triton"):
        boundary_(*boundary_args(case)[:3], case.segments.grouping, case.weights, backend="triton")


@pytest.mark.parametrize(
    ("op", "backend", "device"),
    [("boundary", "auto", "meta"), ("boundary", "hip", "cpu"), ("slot_linear", "hip", "cuda")],
)
def test_an_unknown_backend_or_device_is_refused(op, backend, device):
    with pytest.raises(BackendUnavailableError, match="no backend"):
        get_backend(op, backend, device)


@pytest.mark.parametrize("op", ["boundary", "slot_linear"])
def test_the_cuda_backend_refuses_other_devices(op):
    with pytest.raises(BackendUnavailableError, match="cannot run on device type 'cpu'"):
        get_backend(op, "cuda", "cpu")


def test_the_front_function_and_the_operator_agree(case):
    front, operator = case.hidden.clone(), case.hidden.clone()
    boundary_(front, case.residual, case.state.clone(), case.segments.grouping, case.weights)
    torch.ops.shadow.boundary_(
        operator, case.residual, case.state.clone(), *case.segments.grouping, *case.weights
    )
    assert_same_bits(front, operator, "hidden")


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("down", lambda t: t[:, :, :-1], ShapeError),
        ("up", lambda t: t[:, :-1], ShapeError),
        ("up", lambda t: t[:-1], ShapeError),
        ("norm_weight", lambda t: t.half(), UnsupportedDtypeError),
        ("update_in", lambda t: t.transpose(2, 3).contiguous().transpose(2, 3), ShapeError),
        ("update_in_bias", lambda t: t[:, :1], ShapeError),
        ("flags", lambda t: t.long(), UnsupportedDtypeError),
        ("scale", lambda t: t.half(), UnsupportedDtypeError),
    ],
)
def test_a_wrong_weight_is_refused_by_name(case, name, change, error):
    wrong = case.with_weights(**{name: change(getattr(case.weights, name))})
    with pytest.raises(error, match=name):
        wrong.run()


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("hidden", lambda t: t.double(), UnsupportedDtypeError),
        ("hidden", lambda t: t.t().contiguous().t(), ShapeError),
        ("residual", lambda t: t[:-1], ShapeError),
        ("state", lambda t: t[:5], ShapeError),
        ("state", lambda t: t.bfloat16(), UnsupportedDtypeError),
    ],
)
def test_a_wrong_activation_is_refused_by_name(case, name, change, error):
    tensors = {"hidden": case.hidden, "residual": case.residual, "state": case.state}
    tensors[name] = change(tensors[name])
    with pytest.raises(error, match=name):
        torch.ops.shadow.boundary_(*tensors.values(), *case.segments.grouping, *case.weights)


def test_a_class_outside_the_slots_is_refused(case):
    with pytest.raises(ShapeError, match="slots"):
        slot_linear(torch.zeros(12, 32), torch.zeros(3, 5, 32), None, case.segments.grouping, 2)


@pytest.mark.parametrize(
    ("extents", "num_chunks", "error", "match"),
    [
        (torch.zeros(4, 2, dtype=torch.int32), 1, ShapeError, "extents"),
        (torch.zeros(3, 3, dtype=torch.int32), 1, ShapeError, "extents"),
        (torch.zeros(3, 2), 1, UnsupportedDtypeError, "extents"),
        (None, 2, ShapeError, "chunks"),
        (None, 0, ShapeError, "chunks"),
    ],
)
def test_wrong_extents_are_refused(case, extents, num_chunks, error, match):
    with pytest.raises(error, match=match):
        slot_linear(
            torch.zeros(12, 32), torch.zeros(3, 5, 32), None, case.segments.grouping,
            extents=extents, num_chunks=num_chunks,
        )  # fmt: skip


def test_opcheck_accepts_both_operators(case):
    whole = finite(case)
    torch.library.opcheck(torch.ops.shadow.boundary_.default, boundary_args(whole))
    grouping = whole.segments.grouping
    extents = torch.full((len(whole.weights.down), 2), 1, dtype=torch.int32)
    for given in (None, extents):
        linear = (whole.hidden, whole.weights.down, None, given, 1, *grouping, 0)
        torch.library.opcheck(torch.ops.shadow.slot_linear.default, linear)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_code_mutates_graph_inputs_in_place(case, backend, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    whole = finite(case)

    def model(hidden, residual, state, grouping, weights):
        x = torch.ops.shadow.slot_linear(residual, weights.down, None, None, 1, *grouping, 0)
        state[: x.shape[0], :3] += x
        torch.ops.shadow.boundary_(hidden, residual, state, *grouping, *weights)
        return hidden * 2

    results = {}
    for name, function in (
        ("eager", model),
        ("compiled", torch.compile(model, fullgraph=True, backend=backend)),
    ):
        hidden, state = whole.hidden.clone(), whole.state.clone()
        out = function(hidden, whole.residual, state, whole.segments.grouping, whole.weights)
        results[name] = (hidden, state, out)
    for actual, expected in zip(results["compiled"], results["eager"], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    assert not torch.equal(results["compiled"][1], whole.state)


def test_all_layers_share_one_compiled_graph(case):
    torch._dynamo.reset()
    whole = finite(case)
    graphs = []

    def count(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    step = torch.compile(
        lambda h, r, s, g, w: torch.ops.shadow.boundary_(h, r, s, *g, *w),
        fullgraph=True,
        backend=count,
    )
    stack = whole.weights.down.unsqueeze(1).repeat(1, 6, 1, 1)
    for layer in range(6):
        weights = whole.weights._replace(down=stack[:, layer])
        step(whole.hidden, whole.residual, whole.state, whole.segments.grouping, weights)
    assert len(graphs) == 1


def test_a_step_without_adapters_reads_nothing(case):
    case.segments.fill(np.full(12, -1))
    hidden = case.hidden.clone()
    boundary_(hidden, None, case.state, case.segments.grouping, case.weights)
    assert_same_bits(hidden, case.hidden, "hidden")
    out = slot_linear(case.hidden, case.weights.down, None, case.segments.grouping)
    assert_same_bits(out, torch.zeros(12, 3), "out")


def test_compiling_ahead_is_for_devices_with_a_compiler(case):
    weight = torch.randn(NUM_SLOTS, 6, 8)
    compile_slot_linear(
        weight, None, case.segments.grouping, 0, 64
    )  # the CPU has nothing to compile
    with pytest.raises(BackendUnavailableError):
        compile_slot_linear(weight.to("meta"), None, case.segments.grouping, 0, 64)
