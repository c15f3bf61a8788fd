"""Loading into a running engine: an engine of two workers without a model."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vllm.v1.engine import EngineCoreOutputs, UtilityOutput
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder, UtilityResult

from shadow_runtime import errors
from shadow_runtime.slots.layout import choose_class
from shadow_runtime.vllm_bridge import residency as residency_module
from shadow_runtime.vllm_bridge.control import EngineControl, inspect_adapter, stage_outcome
from shadow_runtime.vllm_bridge.engine_args import StartPlan
from shadow_runtime.vllm_bridge.request import AdapterSource


def through_the_wire(answers: list[Any]) -> list[Any]:
    """Return RPC answers as an engine core in another process hands them on."""
    sent = EngineCoreOutputs(utility_output=UtilityOutput(1, result=UtilityResult(answers)))
    received = MsgpackDecoder(EngineCoreOutputs).decode(MsgpackEncoder().encode(sent))
    return received.utility_output.result.result


class FakeEngine:
    """Answers the RPCs that `EngineControl` sends as vLLM's workers do, from real residencies."""

    def __init__(self, workers: list[Any]) -> None:
        self.workers = workers
        self.calls: list[str] = []

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        self.calls.append(method)
        answers = [getattr(self, method)(worker.residency, *args) for worker in self.workers]
        return through_the_wire(answers)

    def shadow_stage(self, residency: Any, uri: str) -> None:
        residency.stage(AdapterSource.from_uri(uri))

    def shadow_find_stage_error(self, residency: Any, digest: str) -> Any:
        return residency.find_stage_error(digest)

    def shadow_status(self, residency: Any) -> dict[str, Any]:
        residency.check_integrity()
        return residency.status()

    async def add_lora(self, request: Any) -> bool:
        self.calls.append("add_lora")
        return all(worker.residency.add_adapter(request) for worker in self.workers)

    async def remove_lora(self, adapter_id: int) -> bool:
        return all(worker.residency.remove_adapter(adapter_id) for worker in self.workers)


@pytest.fixture
def engine(make_worker: Callable[..., Any]) -> FakeEngine:
    """Return an engine of two workers."""
    return FakeEngine([make_worker(), make_worker()])


@pytest.fixture
def control(engine: FakeEngine, library: Any, make_config: Callable[..., Any]) -> EngineControl:
    """Return the control of that engine."""
    client: Any = engine
    return EngineControl(client, StartPlan(library.base, make_config(), {}))


def held(engine: FakeEngine) -> list[list[str]]:
    """Return the digests that each worker holds."""
    return [worker.residency.status()["held"] for worker in engine.workers]


async def test_a_loaded_adapter_is_held_by_every_worker(
    control: EngineControl, engine: FakeEngine, library: Any
) -> None:
    handle = await control.load("math", str(library.paths["a"]))
    assert handle.manifest == library.manifests["a"]
    assert handle.request.lora_name.startswith("math@")
    assert handle.lora_request is handle.request
    assert held(engine) == [[handle.manifest.digest]] * 2
    # Reading is over before the step loop is asked to add.
    assert engine.calls.index("shadow_stage") < engine.calls.index("add_lora")
    assert all(worker.residency._staged == {} for worker in engine.workers)


async def test_a_second_name_of_the_same_bytes_costs_nothing(
    control: EngineControl, engine: FakeEngine, library: Any
) -> None:
    first = await control.load("one", str(library.paths["a"]))
    second = await control.load("two", str(library.paths["a"]))
    assert first.request.lora_int_id == second.request.lora_int_id
    assert engine.calls.count("add_lora") == 1
    assert [len(digests) for digests in held(engine)] == [1, 1]


async def test_loads_at_once_all_succeed(
    control: EngineControl, engine: FakeEngine, library: Any
) -> None:
    names = ["a", "b", "c", "own", "a"]
    await asyncio.gather(*(control.load(n, str(library.paths[n])) for n in names))
    expected = sorted(library.manifests[n].digest for n in set(names))
    assert held(engine) == [expected, expected]


async def test_unload_frees_every_worker(
    control: EngineControl, engine: FakeEngine, library: Any
) -> None:
    handle = await control.load("math", str(library.paths["a"]))
    await control.unload(handle)
    assert held(engine) == [[], []]


async def test_a_full_host_tier_is_refused_and_nothing_stays_behind(
    control: EngineControl, engine: FakeEngine, library: Any
) -> None:
    for name in "abcd":
        await control.load(name, str(library.paths[name]))
    before = held(engine)
    with pytest.raises(errors.CapacityError, match="all 4 places"):
        await control.load("own", str(library.paths["own"]))
    assert held(engine) == before
    assert all(worker.residency._staged == {} for worker in engine.workers)


async def test_a_workers_error_reaches_the_caller_as_its_class(
    control: EngineControl, engine: FakeEngine, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The API process reads the right files; they change before the workers do.
    load_adapter = residency_module.load_adapter

    def read_other(path: Path, *args: Any, **kwargs: Any) -> Any:
        return load_adapter(library.paths["b"], *args, **kwargs)

    with monkeypatch.context() as changed:
        changed.setattr(residency_module, "load_adapter", read_other)
        with pytest.raises(errors.DigestMismatchError, match="changed: expected"):
            await control.load("math", str(library.paths["a"]))
    assert held(engine) == [[], []]
    await control.load("math", str(library.paths["a"]))


async def test_a_faulty_adapter_never_reaches_the_workers(
    control: EngineControl, engine: FakeEngine, library: Any, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(library.paths["a"], tmp_path / "a"))
    (path / "shadow_config.json").write_text("{")
    with pytest.raises(errors.AdapterError):
        await control.load("math", str(path))
    with pytest.raises(errors.AdapterNotFoundError):
        await control.load("math", str(tmp_path / "missing"))
    assert engine.calls == []


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
    ("answers", "is_ready"),
    [([True], True), ([True, True], True), ([True, False], False), ([False], False)],
)
def test_an_adapter_is_staged_when_every_worker_says_so(answers: list[Any], is_ready: bool) -> None:
    assert stage_outcome(answers) is is_ready


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
    answers = [True, (cls.code, "what happened"), False]
    with pytest.raises(cls, match="what happened") as caught:
        stage_outcome(through_the_wire(answers) if is_remote else answers)
    assert type(caught.value) is cls


def test_codes_are_unique() -> None:
    codes = [cls.code for cls in error_classes()]
    assert len(set(codes)) == len(codes) >= 11


def test_an_unknown_code_is_still_an_error() -> None:
    with pytest.raises(errors.ShadowError, match="no pinned memory"):
        stage_outcome([("internal_error", "no pinned memory")])


def test_waiting_ends_when_the_adapter_is_gone(control: EngineControl) -> None:
    # Loaded by one caller and unloaded before the other one asked.
    with pytest.raises(errors.ShadowError, match="load it again"):
        asyncio.run(asyncio.wait_for(control._wait_until_staged("sha256:" + "0" * 64), 5))
