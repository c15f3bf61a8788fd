"""The object that vLLM's runners call for everything adapter, over real files and stacks but without an engine."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import vllm.v1.worker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vllm.lora.layers import LoRAMapping
from vllm.lora.request import LoRARequest

from shadow_runtime import errors
from shadow_runtime.artifact import load_adapter
from shadow_runtime.slots.image import build_image
from shadow_runtime.types import NO_ADAPTER
from shadow_runtime.vllm_bridge.request import AdapterSource, build_request
from shadow_runtime.vllm_bridge.residency import AdapterResidency, find_residency

# The seam ----------------------------------------------------------------------------------------


def test_every_method_that_vllm_calls_exists() -> None:
    called: set[str] = set()
    for file in Path(vllm.v1.worker.__path__[0]).rglob("*.py"):
        called |= set(re.findall(r"self\.lora_manager\.(\w+)\(", file.read_text()))
    # It builds vLLM's own adapter layers; `load_lora_model`, which calls it, is replaced.
    called -= {"create_lora_manager"}
    assert {"set_active_adapters", "add_dummy_lora", "remove_all_adapters"} <= called
    assert {name for name in called if not callable(getattr(AdapterResidency, name, None))} == set()


def test_the_residency_of_a_runner_is_found(worker: Any) -> None:
    class Runner:
        lora_manager: object = None

    runner = Runner()
    assert find_residency(runner) is None
    assert find_residency(object()) is None
    runner.lora_manager = worker.residency
    assert find_residency(runner) is worker.residency


def test_towers_carry_no_shadow_path(worker: Any) -> None:
    assert worker.residency.supports_tower_connector_lora() is False


# Warm-up -----------------------------------------------------------------------------------------


def dummy(adapter_id: int) -> LoRARequest:
    """Return one of vLLM's warm-up requests."""
    return LoRARequest(f"warmup_{adapter_id}", adapter_id, "/not/a/real/path")


def test_warm_up_adapters_run_in_slots_of_their_own(worker: Any) -> None:
    with worker.residency.dummy_lora_cache():
        for adapter_id in (1, 2):
            assert worker.residency.add_dummy_lora(dummy(adapter_id), rank=8)
    assert worker.residency.get_dummy_lora_warmup_rank(8) == 8
    ids = (0, 1, 2, 1, 0)
    worker.residency.set_active_adapters({dummy(1), dummy(2)}, LoRAMapping(ids, ids))
    assert worker.slots(5) == [-1, 0, 1, 0, -1]
    # They hold no memory and are not among the adapters.
    assert worker.residency.list_adapters() == set()
    assert worker.residency.status()["held"] == []
    assert worker.residency.status()["num_free_slots"] == 4


def test_more_warm_up_adapters_than_slots_wrap_around(worker: Any) -> None:
    for adapter_id in range(1, 8):
        worker.residency.add_dummy_lora(dummy(adapter_id), rank=8)
    ids = tuple(range(1, 8))
    worker.residency.set_active_adapters({dummy(i) for i in ids}, LoRAMapping(ids, ids))
    assert worker.slots(7) == [0, 1, 2, 3, 0, 1, 2]


def test_the_end_of_warm_up_keeps_real_adapters(make_worker: Callable[..., Any]) -> None:
    # vLLM calls it after every dummy run, also with adapters loaded.
    worker = make_worker(max_pinned_adapters=1)
    worker.add("a", "own")
    slots = worker.step(["a", "own"])
    worker.residency.pin_adapter(worker.id_of("a"))
    before = worker.snapshot()
    worker.residency.add_dummy_lora(dummy(1), rank=8)
    worker.residency.remove_all_adapters()
    worker.assert_unchanged(before)
    assert worker.step(["a", "own"]) == slots


def test_a_forgotten_warm_up_adapter_is_unknown(worker: Any) -> None:
    worker.residency.add_dummy_lora(dummy(1), rank=8)
    worker.residency.remove_all_adapters()
    with pytest.raises(errors.AdapterConfigError):
        worker.residency.set_active_adapters({dummy(1)}, LoRAMapping((1,), (1,)))
    with pytest.raises(RuntimeError, match="adapter id 1"):
        worker.residency.set_active_adapters(set(), LoRAMapping((1,), (1,)))


# Steps -------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sets(st.sampled_from("abcd"), max_size=2),
        st.booleans(),
        st.integers(1, 40),
        st.integers(),
    ),
    min_size=1,
    max_size=8,
)


@given(steps=STEPS)
@settings(
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_every_token_gets_its_adapters_slot(
    steps: list[Any], make_worker: Callable[..., Any], library: Any
) -> None:
    worker = make_worker(max_host_adapters=5)
    for chosen, has_own, num_tokens, seed in steps:
        adapters = [None, *sorted(chosen), *(["own"] if has_own else [])]
        generator = torch.Generator().manual_seed(seed % 2**32)
        picks = torch.randint(0, len(adapters), (num_tokens,), generator=generator).tolist()
        tokens = [adapters[pick] for pick in picks]
        slots = worker.step(tokens, named={a for a in adapters if a is not None})
        resident = worker.resident()
        for token, slot in zip(tokens, slots, strict=True):
            assert slot == (NO_ADAPTER if token is None else resident[token])
        assert len(set(resident.values())) == len(resident)
        assert all((slot >= 2) == (name == "own") for name, slot in resident.items())
        for name, slot in resident.items():
            worker.assert_holds(slot, name)


def test_a_slot_holds_the_whole_image(worker: Any) -> None:
    worker.step(["b"])
    slot = worker.resident()["b"]
    config, executor = worker.executor.config, worker.executor
    image = build_image(
        load_adapter(worker.library.paths["b"], worker.library.base),
        config,
        executor.plan,
        hidden_size=executor.hidden_size,
        dtype=torch.float32,
    )
    for name, tensor in image.boundary.items():
        assert torch.equal(executor.stacks.boundary[name][slot], tensor), name
    for name, tensor in image.backbone.items():
        assert torch.equal(executor.stacks.backbones[0][name][slot], tensor), name
    assert torch.equal(executor.stacks.flags[:, slot], image.flags)
    assert executor.stacks.scale[slot] == 1.0


def test_a_step_without_adapters_has_no_slots(worker: Any) -> None:
    worker.add("a")
    assert worker.step([None, None, None]) == [-1, -1, -1]
    assert worker.resident() == {}


def test_no_mapping_changes_nothing(worker: Any) -> None:
    worker.add("a")
    worker.step(["a", None])
    before = worker.snapshot()
    worker.residency.set_active_adapters({worker.request("b")}, None)
    worker.assert_unchanged(before)


def test_tokens_of_an_unknown_id_are_never_answered(worker: Any) -> None:
    worker.add("a")
    worker.step(["a"])
    before = worker.executor.num_steps
    with pytest.raises(RuntimeError, match=f"adapter id {worker.id_of('b')}"):
        worker.step(["a", "b"], named={"a"})
    assert worker.executor.num_steps == before


def test_a_step_loads_what_was_unloaded_meanwhile(worker: Any) -> None:
    worker.add("a")
    worker.residency.remove_adapter(worker.id_of("a"))
    assert worker.step(["a"]) == [worker.resident()["a"]]


def test_a_step_of_held_adapters_parses_no_path(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.add("a", "b")
    expected = worker.step(["a", "b", "a"])
    monkeypatch.setattr(AdapterSource, "from_uri", lambda uri: pytest.fail(f"parsed {uri}"))
    assert worker.step(["a", "b", "a"]) == expected


@pytest.mark.parametrize("is_ascending", [False, True])
def test_what_a_step_needs_is_not_evicted_by_it(is_ascending: bool, worker: Any) -> None:
    # Slots are given in the order of the ids: the missing adapter comes first, or last.
    names = sorted("abc", key=worker.id_of, reverse=not is_ascending)
    missing, other, needed = names
    worker.step([needed])
    worker.step([other])
    # The needed one is the older of the two: `other` must leave nevertheless.
    slot = worker.resident()[needed]
    slots = worker.step([missing, needed])
    assert slots[1] == slot
    assert set(worker.resident()) == {missing, needed}


def test_a_pinned_adapter_keeps_its_slot(make_worker: Callable[..., Any]) -> None:
    worker = make_worker(max_resident_adapters=1, max_pinned_adapters=1)
    worker.add("a", "b", "c")
    assert worker.residency.pin_adapter(worker.id_of("a"))
    worker.settle()
    slot = worker.resident()["a"]
    for name in "bcbc":
        worker.step([name])
        assert worker.resident()["a"] == slot
    assert worker.residency.pin_adapter(worker.id_of("b")) is False
    assert worker.residency.pin_adapter(worker.id_of("d")) is False


# Identity ----------------------------------------------------------------------------------------


def test_two_names_of_one_digest_share_a_slot(worker: Any) -> None:
    assert worker.residency.add_adapter(worker.request("one", "a"))
    assert worker.residency.add_adapter(worker.request("two", "a")) is False
    assert len(worker.residency.list_adapters()) == 1
    requests = {worker.request("one", "a"), worker.request("two", "a")}
    assert len(requests) == 1  # one adapter to vLLM
    ids = (worker.id_of("a"),) * 2
    worker.residency.set_active_adapters(requests, LoRAMapping(ids, ids))
    assert len(set(worker.slots(2))) == 1
    assert worker.residency.status()["num_free_slots"] == 3


def test_a_clash_of_ids_is_refused_and_changes_nothing(worker: Any) -> None:
    worker.add("a")
    digest = worker.digest_of("a")
    other = replace(worker.library.manifests["b"], digest=digest[:15] + "0" * 56)
    assert build_request("b", other).lora_int_id == worker.id_of("a")
    before = worker.snapshot()
    with pytest.raises(errors.AdapterExistsError, match="31-bit id"):
        worker.residency.add_adapter(build_request("b", other))
    ids = (worker.id_of("a"),)
    with pytest.raises(errors.AdapterExistsError, match="31-bit id"):
        worker.residency.set_active_adapters({build_request("b", other)}, LoRAMapping(ids, ids))
    worker.assert_unchanged(before)


def test_a_plain_directory_is_refused(worker: Any) -> None:
    with pytest.raises(errors.AdapterConfigError, match="does not name a digest"):
        worker.residency.add_adapter(LoRARequest("a", 2**30 + 7, str(worker.library.paths["a"])))
