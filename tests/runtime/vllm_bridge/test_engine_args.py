"""What is decided before the engine starts, and what is refused there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shadow_runtime.config import ShadowConfig
from shadow_runtime.errors import (
    AdapterMismatchError,
    AdapterNotFoundError,
    ConfigError,
    UnsupportedStackError,
)
from shadow_runtime.slots.derive import SlotOptions
from shadow_runtime.vllm_bridge.engine_args import (
    SCHEDULER_FACTORY,
    WORKER_CLASS,
    NamedAdapter,
    StartPlan,
    describe_slots,
    plan_start,
    shadow_engine_args,
)

Config = Callable[..., ShadowConfig]


def test_the_arguments_switch_the_shadow_path_on(make_config: Config) -> None:
    config = make_config(max_resident_adapters=3, max_host_adapters=9)
    arguments = shadow_engine_args(config)
    assert arguments == {
        "enable_lora": True,
        "max_loras": 3,
        "max_cpu_loras": 9,
        "worker_cls": WORKER_CLASS,
        "scheduler_cls": SCHEDULER_FACTORY,
        "additional_config": {"shadow": config.to_dict()},
    }
    # The settings cross a process boundary as JSON.
    sent = json.loads(json.dumps(arguments["additional_config"]["shadow"]))
    assert ShadowConfig.from_dict(sent) == config


def test_the_workers_class_exists() -> None:
    module, _, name = WORKER_CLASS.rpartition(".")
    source = Path(__import__(module, fromlist=[name]).__file__).read_text()
    assert f"class {name}(" in source


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("worker_cls", "my.own.Worker"),
        ("lora_modules", [("one", "/a")]),
        ("speculative_config", {"method": "ngram"}),
        ("enable_prompt_embeds", True),
        ("enable_dbo", True),
        ("hf_overrides", {"rope_theta": 1.0}),
        ("hf_config_path", "/elsewhere"),
    ],
)
def test_contradicting_arguments_are_refused_by_name(
    field: str, value: Any, make_config: Config
) -> None:
    with pytest.raises(ConfigError, match=rf"^{field} .*cannot be combined with the shadow path"):
        shadow_engine_args(make_config(), {field: value})


@pytest.mark.parametrize(
    "existing",
    [
        {"worker_cls": "auto", "lora_modules": None, "speculative_config": None},
        {"worker_cls": WORKER_CLASS, "lora_modules": [], "enable_dbo": False},
        {"dtype": "float32"},
    ],
)
def test_harmless_arguments_pass(existing: dict[str, Any], make_config: Config) -> None:
    assert shadow_engine_args(make_config(), existing)["worker_cls"] == WORKER_CLASS


def test_other_additional_config_is_kept_and_not_written_to(make_config: Config) -> None:
    theirs = {"other": {"x": 1}, "shadow": "stale"}
    existing = {"additional_config": theirs}
    merged = shadow_engine_args(make_config(), existing)["additional_config"]
    assert merged["other"] == {"x": 1}
    assert merged["shadow"] == make_config().to_dict()
    assert theirs == {"other": {"x": 1}, "shadow": "stale"}


@pytest.mark.parametrize(
    "existing",
    [
        {},
        {"pipeline_parallel_size": 2},
        {"scheduler_cls": None},
        {"scheduler_cls": SCHEDULER_FACTORY},
    ],
)
def test_every_engine_gets_the_scheduler_with_turns(
    existing: dict[str, Any], make_config: Config
) -> None:
    assert shadow_engine_args(make_config(), existing)["scheduler_cls"] == SCHEDULER_FACTORY


def test_another_scheduler_is_refused(make_config: Config) -> None:
    with pytest.raises(ConfigError, match=r"my\.Scheduler.*no turn"):
        shadow_engine_args(make_config(), {"scheduler_cls": "my.Scheduler"})


def test_a_plan_holds_every_named_adapter(library: Any) -> None:
    named = [NamedAdapter(n, library.paths[n]) for n in ("a", "own")]
    plan = plan_start(str(library.base_dir), named, SlotOptions(max_resident_adapters=5))
    assert plan.base == library.base
    assert plan.manifests == {n: library.manifests[n] for n in ("a", "own")}
    assert [c.num_slots for c in plan.config.slot_classes] == [7, 7]
    assert plan.config.max_resident_adapters == 5


def test_a_given_config_is_taken_as_it_is(library: Any, make_config: Config) -> None:
    plan = plan_start(str(library.base_dir), config=make_config(max_resident_adapters=3))
    assert plan.config == make_config(max_resident_adapters=3)


def test_a_base_without_shadow_path_is_refused(tmp_path: Path) -> None:
    fields = {"model_type": "opt", "architectures": ["OPTForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(
        UnsupportedStackError, match=r"OPTForCausalLM.*supported are Qwen3ForCausalLM"
    ):
        plan_start(str(tmp_path))


def test_another_vllm_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shadow_runtime.vllm_bridge.version.installed_version", lambda: "0.33.0")
    with pytest.raises(UnsupportedStackError, match=r"vLLM 0\.33\.0 is not supported"):
        plan_start(str(tmp_path / "missing"))


def test_a_missing_adapter_is_refused(library: Any, tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFoundError):
        plan_start(str(library.base_dir), [NamedAdapter("x", tmp_path / "missing")])


def test_an_adapter_of_another_base_is_refused(library: Any, tmp_path: Path) -> None:
    from reference_adapters import build_base

    other = build_base("qwen3", tmp_path / "other", hidden_size=64, head_dim=16, vocab_size=48)
    with pytest.raises(AdapterMismatchError):
        plan_start(str(other), [NamedAdapter("a", library.paths["a"])])


def test_slots_are_described_with_what_they_cost(library: Any) -> None:
    # Rank 16, gate 10, one layer: counted by hand from the shapes, in bf16.
    options = SlotOptions(shadow_intermediate_size=4096, max_resident_adapters=4)
    plan: StartPlan = plan_start(str(library.base_dir), options=options)
    boundary = 4 * (2 * 16 * 32 + 2 * 2 * 10 * 32 + 2 * 10 + 2 * 32) + 2 * 32
    heads = plan.base.hf_config["num_attention_heads"]
    kv_heads = plan.base.hf_config["num_key_value_heads"]
    layer = (heads + 2 * kv_heads) * 16 * 32 + 32 * heads * 16 + 3 * 4096 * 32 + 2 * 32 + 2 * 16
    per_slot = 2 * (boundary + layer + 32) + 4 * 4 + 4
    (line,) = describe_slots(plan, element_bytes=2)
    assert line.startswith("slot class 0:qwen3-1x32: 6 slots, 1 shadow layers, MLP 4096")
    assert f"{per_slot / 2**20:.1f} MiB a slot" in line
    assert f"{6 * per_slot / 2**20:.1f} MiB together" in line
