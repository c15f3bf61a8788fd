"""Loading into a running engine: an engine of two workers without a model."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.engine import EngineCoreOutputs, UtilityOutput
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder, UtilityResult

from shadow_runtime import errors
from shadow_runtime.slots.layout import choose_class
from shadow_runtime.vllm_bridge import image_loader
from shadow_runtime.vllm_bridge.control import EngineControl, inspect_adapter, merge_progress
from shadow_runtime.vllm_bridge.engine_args import StartPlan
from shadow_runtime.vllm_bridge.worker import ShadowWorker


def through_the_wire(answers: list[Any]) -> list[Any]:
    """Return RPC answers as an engine core in another process hands them on."""
    sent = EngineCoreOutputs(utility_output=UtilityOutput(1, result=UtilityResult(answers)))
    received = MsgpackDecoder(EngineCoreOutputs).decode(MsgpackEncoder().encode(sent))
    return received.utility_output.result.result


class FakeEngine:
    """Answers the RPCs that `EngineControl` sends as vLLM's workers do, from real residencies.

    Attributes:
        cores: the workers of each engine core.
    """

    def __init__(self, *cores: list[Any]) -> None:
        self.cores = cores
        self.engine_core = SimpleNamespace(
            core_engines=[str(rank).encode() for rank in range(len(cores))],
            call_utility_all_async=self.call_utility,
        )
        self.calls: list[str] = []
        self.model_config = SimpleNamespace(dtype=torch.float32)
        self.vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(tensor_parallel_size=1))

    @property
    def workers(self) -> list[Any]:
        return [worker for core in self.cores for worker in core]

    async def call_utility(self, utility: str, method: str, *rest: Any) -> list[list[Any]]:
        (seconds, args, keywords) = rest
        assert (utility, seconds, keywords) == ("collective_rpc", None, None)
        self.calls.append(method)
        # As vLLM does it, an RPC is answered after the caller has been suspended.
        await asyncio.sleep(0)
        return [
            through_the_wire([self.answer(w.residency, method, args) for w in core])
            for core in self.cores
        ]

    def answer(self, residency: Any, method: str, args: tuple[Any, ...]) -> Any:
        worker = SimpleNamespace(_residency=lambda: residency)
        if method == "shadow_status":
            residency.check_integrity()
            return residency.status()
        return getattr(ShadowWorker, method)(worker, *args)


@pytest.fixture(params=["workers", "replicas"])
def engine(request: pytest.FixtureRequest, make_worker: Callable[..., Any]) -> FakeEngine:
    """Return an engine of two workers, and two engines of one."""
    first, second = make_worker(**OPTIONS), make_worker(**OPTIONS)
    return (
        FakeEngine([first, second]) if request.param == "workers" else FakeEngine([first], [second])
    )


OPTIONS = {"max_pinned_adapters": 1}


@pytest.fixture
def control(engine: FakeEngine, library: Any, make_config: Callable[..., Any]) -> EngineControl:
    """Return the control of that engine."""
    client: Any = engine
    return EngineControl(client, StartPlan(library.base, make_config(**OPTIONS), {}))


def held(engine: FakeEngine) -> list[list[str]]:
    """Return the digests that each worker holds."""
    return [worker.residency.status()["held"] for worker in engine.workers]


def staged(engine: FakeEngine) -> set[str]:
    """Return the digests that a worker reads or has read without holding them."""
    return set().union(*(worker.staged() for worker in engine.workers))


async def test_a_loaded_adapter_is_held_by_every_worker(
    control: EngineControl, engine: FakeEngine, library: Any
) -> None:
    manifest = library.manifests["a"]
    await control.load(manifest)
    assert held(engine) == [[manifest.digest]] * 2
    assert await control.levels() == {manifest.digest: "host"}
    assert set(engine.calls) == {"shadow_load", "shadow_status"}
    assert staged(engine) == set()


async def test_a_held_adapter_is_asked_for_once(
    control: EngineControl, engine: FakeEngine, library: Any
) -> None:
    await control.load(library.manifests["a"])
    engine.calls.clear()
    await control.load(library.manifests["a"])
    assert engine.calls == ["shadow_load"]


async def test_loads_at_once_all_succeed(
    control: EngineControl, engine: FakeEngine, library: Any
) -> None:
    names = ["a", "b", "c", "own"]
    await asyncio.gather(*(control.load(library.manifests[n]) for n in names))
    expected = sorted(library.manifests[n].digest for n in names)
    assert held(engine) == [expected, expected]


async def test_unload_frees_every_worker(
    control: EngineControl, engine: FakeEngine, library: Any
) -> None:
    digest = library.manifests["a"].digest
    await control.load(library.manifests["a"])
    assert await control.prefetch(digest)
    await control.unload(digest)
    await control.unload("sha256:unknown")
    assert held(engine) == [[], []]
    assert [worker.resident() for worker in engine.workers] == [{}, {}]


async def test_a_full_host_tier_is_refused_and_nothing_stays_behind(
    control: EngineControl, engine: FakeEngine, library: Any
) -> None:
    for name in "abcd":
        await control.load(library.manifests[name])
    before = held(engine)
    with pytest.raises(errors.CapacityError, match="all 4 places"):
        await control.load(library.manifests["own"])
    assert held(engine) == before
    assert staged(engine) == set()


async def test_a_workers_error_reaches_the_caller_and_undoes_the_other_worker(
    control: EngineControl, engine: FakeEngine, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The files were valid when they were published; one worker reads others.
    load_adapter = image_loader.load_adapter
    num_reads = itertools.count()

    def read_other_once(path: Path, *args: Any, **kwargs: Any) -> Any:
        return load_adapter(path if next(num_reads) % 2 else library.paths["b"], *args, **kwargs)

    with monkeypatch.context() as changed:
        changed.setattr(image_loader, "load_adapter", read_other_once)
        with pytest.raises(errors.DigestMismatchError, match="changed: expected"):
            await control.load(library.manifests["a"])
    assert held(engine) == [[], []]
    assert staged(engine) == set()
    await control.load(library.manifests["a"])


async def test_a_caller_that_goes_away_leaves_nothing(
    control: EngineControl, engine: FakeEngine, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_adapter = image_loader.load_adapter
    may_read = threading.Event()

    def read(*args: Any, **kwargs: Any) -> Any:
        may_read.wait(30)
        return load_adapter(*args, **kwargs)

    monkeypatch.setattr(image_loader, "load_adapter", read)
    load = asyncio.create_task(control.load(library.manifests["a"]))
    while engine.calls.count("shadow_load") < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    may_read.set()
    assert engine.calls[-1] == "shadow_unload"
    assert staged(engine) == set()
    assert held(engine) == [[], []]


async def test_a_held_adapter_survives_a_caller_that_goes_away(
    control: EngineControl, engine: FakeEngine, library: Any
) -> None:
    # Another name of the same bytes is published while requests use them.
    await control.load(library.manifests["a"])
    load = asyncio.create_task(control.load(library.manifests["a"]))
    await asyncio.sleep(0)
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert held(engine) == [[library.manifests["a"].digest]] * 2


async def test_questions_become_rarer_while_a_load_takes_long(
    control: EngineControl, engine: FakeEngine, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    load_adapter = image_loader.load_adapter
    may_read = threading.Event()
    sleep = asyncio.sleep

    def read(*args: Any, **kwargs: Any) -> Any:
        may_read.wait(30)
        return load_adapter(*args, **kwargs)

    async def note(seconds: float) -> None:
        waits.append(seconds)
        if len([w for w in waits if w]) == 12:
            may_read.set()
        await sleep(0.001 if may_read.is_set() else 0)

    monkeypatch.setattr(image_loader, "load_adapter", read)
    monkeypatch.setattr(asyncio, "sleep", note)
    await control.load(library.manifests["a"])
    waits = [w for w in waits if w]
    assert waits[0] <= 0.002
    assert all(a < b <= 1.5 * a for a, b in itertools.pairwise(waits[:4]))
    assert max(waits) == waits[11] == 0.005


async def test_levels_name_the_nearest_place_of_all_workers(
    control: EngineControl, engine: FakeEngine, library: Any
) -> None:
    a, b = (library.manifests[name].digest for name in "ab")
    await control.load(library.manifests["a"])
    await control.load(library.manifests["b"])
    assert await control.prefetch(a) is True
    engine.workers[0].residency.prefetch(b)
    engine.workers[0].settle()
    assert await control.levels() == {a: "gpu", b: "host"}
    await control.release_slot(a)
    assert await control.levels() == {a: "host", b: "host"}
    assert await control.prefetch("sha256:unknown") is False


async def test_pins_are_kept_and_bounded(
    control: EngineControl, engine: FakeEngine, library: Any
) -> None:
    a, b = (library.manifests[name].digest for name in "ab")
    for name in ("a", "b"):
        await control.load(library.manifests[name])
    await control.pin(a)
    await control.pin(a)
    assert [s["pinned"] for s in await control.worker_status()] == [[a], [a]]
    await control.release_slot(a)
    assert (await control.levels())[a] == "gpu"
    with pytest.raises(errors.CapacityError, match="all 1 pins"):
        await control.pin(b)
    with pytest.raises(errors.AdapterNotFoundError):
        await control.pin("sha256:unknown")
    await control.unpin(a)
    await control.unpin("sha256:unknown")
    await control.pin(b)
    assert [s["pinned"] for s in await control.worker_status()] == [[b], [b]]
    await control.unload(b)
    assert [s["pinned"] for s in await control.worker_status()] == [[], []]


@pytest.mark.parametrize("name", ["a", "own"])
async def test_host_bytes_are_what_the_workers_hold(
    name: str, control: EngineControl, engine: FakeEngine, library: Any
) -> None:
    await control.load(library.manifests[name])
    (status, _) = await control.worker_status()
    held_bytes = control.num_engines * status["host_bytes"]
    # The flags and the scale, four bytes a layer and four, are not counted as tensors.
    extra = control.host_bytes(library.manifests[name]) - held_bytes
    assert extra == control.num_engines * (4 * library.base.num_layers + 4)


def test_an_adapter_outside_every_slot_class_is_refused_on_inspection(
    library: Any, make_config: Callable[..., Any]
) -> None:
    config = make_config(max_injection_rank=2)
    with pytest.raises(errors.AdapterLimitError, match=r"injection rank 8 .* maximum of 2"):
        inspect_adapter(StartPlan(library.base, config, {}), library.paths["a"])
    plan = StartPlan(library.base, make_config(), {})
    manifest = inspect_adapter(plan, str(library.paths["own"]))
    assert choose_class(plan.config, manifest) == 1


# Outcomes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ([True], True),
        ([True, True], True),
        ([True, False], False),
        ([False], False),
        ([None], None),
        ([True, None], None),
        ([False, None], None),
    ],
)
def test_what_all_workers_have_reached(answers: list[Any], outcome: bool | None) -> None:
    assert merge_progress(answers) is outcome
    assert merge_progress(through_the_wire(answers)) is outcome


def error_classes() -> list[type[errors.ShadowError]]:
    """Return every class of the error tree but its root."""
    found, queue = [], [errors.ShadowError]
    while queue:
        children = queue.pop().__subclasses__()
        ours = [c for c in children if c.__module__ == "shadow_runtime.errors"]
        found += ours
        queue += ours
    return found


@pytest.mark.parametrize("is_remote", [False, True], ids=["same process", "over the wire"])
@pytest.mark.parametrize("cls", error_classes(), ids=lambda c: c.__name__)
def test_every_error_survives_as_code_and_message(
    cls: type[errors.ShadowError], is_remote: bool
) -> None:
    answers = [True, None, (cls.code, "what happened"), False]
    with pytest.raises(cls, match="what happened") as caught:
        merge_progress(through_the_wire(answers) if is_remote else answers)
    assert type(caught.value) is cls


def test_codes_are_unique() -> None:
    codes = [cls.code for cls in error_classes()]
    assert len(set(codes)) == len(codes) >= 11


def test_an_unknown_code_is_still_an_error() -> None:
    with pytest.raises(errors.ShadowError, match="no pinned memory"):
        merge_progress([("internal_error", "no pinned memory")])
