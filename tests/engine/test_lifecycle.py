"""Adapters come and go while the engine runs; bytes that change are another adapter; bad ones harm nobody."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine_cast import Cast, build_cast
from engine_oracle import ADAPTER_MARGIN, LOGPROB_TOLERANCE, AdapterFiles, Oracle
from engine_session import BLOCK_SIZE, Answer, Row, answer_rows, random_prompt, shadow_engine
from reference_adapters import AdapterKind, build_adapter, build_base
from shadow_runtime import errors

KIND: AdapterKind = "paper_implicit"
PROMPT = random_prompt(70, seed=70)
NUM_TOKENS = 6
NUM_CACHED = len(PROMPT) // BLOCK_SIZE * BLOCK_SIZE


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    return build_cast("qwen3", tmp_path_factory.mktemp("lifecycle"))


@pytest.fixture(scope="module")
def engine(cast: Cast) -> Iterator[Any]:
    """One engine whose slot class was derived from two adapters."""
    named = {name: cast.adapters[name] for name in (KIND, "peft_mirror")}
    with shadow_engine(cast.base, named, max_resident_adapters=2) as llm:
        yield llm


@pytest.fixture
def llm(engine: Any) -> Iterator[Any]:
    """The engine with nothing loaded, before and after."""
    _unload_all(engine)
    yield engine
    _unload_all(engine)


def _unload_all(engine: Any) -> None:
    for name in list(engine.adapters):
        engine.unload_adapter(name)


def status(llm: Any) -> dict[str, Any]:
    (only,) = llm.worker_status()
    return only


def oracle_of(cast: Cast, path: Path) -> Oracle:
    """Return an oracle for the adapter that lies at `path` now; it has read the files when this returns."""
    oracle = Oracle(cast.base, {"it": AdapterFiles(KIND, path)})
    oracle.logprobs("it", PROMPT)
    return oracle


def answer(llm: Any, name: str) -> Answer:
    return answer_rows(llm, [Row(name, PROMPT)], NUM_TOKENS)[0]


def distance(given: Answer, oracle: Oracle) -> float:
    """Return the largest difference of logprobs to what the oracle's adapter answers."""
    return oracle.deviation(Row("it", PROMPT), given).output


def check(given: Answer, oracle: Oracle) -> None:
    oracle.check_tokens(Row("it", PROMPT), given)
    assert distance(given, oracle) <= LOGPROB_TOLERANCE


def test_unload_frees_the_slot_for_another(llm: Any, cast: Cast, tmp_path: Path) -> None:
    total = status(llm)["num_slots"]
    assert status(llm)["num_free_slots"] == total
    handle = llm.load_adapter("a", cast.adapters[KIND])
    check(answer(llm, "a"), oracle_of(cast, cast.adapters[KIND]))
    assert status(llm)["num_free_slots"] == total - 1
    assert list(status(llm)["resident"]) == [handle.manifest.digest]
    llm.unload_adapter("a")
    assert status(llm)["num_free_slots"] == total
    assert status(llm)["held"] == []
    other = build_adapter(KIND, cast.base, tmp_path / "other", seed=900)
    llm.load_adapter("a", other)
    check(answer(llm, "a"), oracle_of(cast, other))


def test_the_handle_lists_what_was_loaded(llm: Any, cast: Cast) -> None:
    handle = llm.load_adapter("a", cast.adapters["peft_mirror"])
    assert llm.adapters == {"a": handle}
    assert handle.manifest.format == "peft"
    assert handle.manifest.digest in status(llm)["held"]


def test_a_replaced_file_never_meets_stale_keys_and_values(
    llm: Any, cast: Cast, tmp_path: Path
) -> None:
    path = build_adapter(KIND, cast.base, tmp_path / "adapter", seed=901)
    old = oracle_of(cast, path)
    llm.load_adapter("a", path)
    check(answer(llm, "a"), old)
    assert answer(llm, "a").num_cached_tokens == NUM_CACHED
    llm.unload_adapter("a")
    shutil.rmtree(path)
    build_adapter(KIND, cast.base, path, seed=902)
    llm.load_adapter("a", path)
    replaced = answer(llm, "a")
    assert replaced.num_cached_tokens == 0
    check(replaced, oracle_of(cast, path))
    assert distance(replaced, old) > ADAPTER_MARGIN


def test_the_same_bytes_again_find_their_cached_prefix(llm: Any, cast: Cast) -> None:
    llm.load_adapter("again", cast.adapters[KIND])
    answer(llm, "again")
    llm.unload_adapter("again")
    llm.load_adapter("again", cast.adapters[KIND])
    second = answer(llm, "again")
    assert second.num_cached_tokens == NUM_CACHED
    check(second, oracle_of(cast, cast.adapters[KIND]))


def test_overwritten_files_do_not_change_a_loaded_adapter(
    llm: Any, cast: Cast, tmp_path: Path
) -> None:
    path = build_adapter(KIND, cast.base, tmp_path / "adapter", seed=903)
    loaded = oracle_of(cast, path)
    llm.load_adapter("a", path)
    build_adapter(KIND, cast.base, path, seed=904)
    for number in range(3):  # more than the slots, so that "a" is evicted and comes back
        llm.load_adapter(
            f"other{number}",
            build_adapter(KIND, cast.base, tmp_path / f"{number}", seed=910 + number),
        )
        answer(llm, f"other{number}")
    assert llm.adapters["a"].manifest.digest not in status(llm)["resident"]
    llm.llm.reset_prefix_cache()
    check(answer(llm, "a"), loaded)


def test_two_names_of_one_adapter_share_it(llm: Any, cast: Cast) -> None:
    llm.load_adapter("a", cast.adapters[KIND])
    llm.load_adapter("b", cast.adapters[KIND])
    assert len(status(llm)["held"]) == 1
    llm.unload_adapter("a")
    check(answer(llm, "b"), oracle_of(cast, cast.adapters[KIND]))
    llm.unload_adapter("b")
    assert status(llm)["held"] == []


def test_an_unknown_adapter_is_refused_before_anything_runs(llm: Any) -> None:
    with pytest.raises(errors.AdapterNotFoundError, match="nobody"):
        answer_rows(llm, [Row(None, PROMPT), Row("nobody", PROMPT)], NUM_TOKENS)
    assert llm.llm.llm_engine.get_num_unfinished_requests() == 0


def test_a_taken_name_is_refused(llm: Any, cast: Cast) -> None:
    llm.load_adapter("a", cast.adapters[KIND])
    with pytest.raises(errors.AdapterExistsError, match="'a'"):
        llm.load_adapter("a", cast.adapters["peft_mirror"])


def _not_a_number(path: Path, cast: Cast) -> None:
    tensors = load_file(path / "shadow_adapter.safetensors")
    tensors["shadow_injection_model.injection_ups"][1, 2, 3] = torch.nan
    save_file(tensors, path / "shadow_adapter.safetensors")


def _missing_key(path: Path, cast: Cast) -> None:
    tensors = load_file(path / "shadow_adapter.safetensors")
    del tensors["shadow_update_model.hidden_norm.weight"]
    save_file(tensors, path / "shadow_adapter.safetensors")


def _unknown_key(path: Path, cast: Cast) -> None:
    tensors = load_file(path / "shadow_adapter.safetensors")
    tensors["shadow_update_model.surprise"] = torch.zeros(3)
    save_file(tensors, path / "shadow_adapter.safetensors")


def _truncated_file(path: Path, cast: Cast) -> None:
    file = path / "shadow_adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _broken_config(path: Path, cast: Cast) -> None:
    (path / "shadow_config.json").write_text("{")


def _wrong_width(path: Path, cast: Cast) -> None:
    shutil.rmtree(path)
    other = build_base("qwen3", path.parent / "wide", hidden_size=96, seed=1)
    build_adapter(KIND, other, path, seed=1)


def _wrong_depth(path: Path, cast: Cast) -> None:
    shutil.rmtree(path)
    other = build_base("qwen3", path.parent / "deep", num_layers=6, seed=1)
    build_adapter(KIND, other, path, seed=1)


def _too_wide_rank(path: Path, cast: Cast) -> None:
    shutil.rmtree(path)
    build_adapter(KIND, cast.base, path, seed=1, injection_hidden_size=48)


def _too_many_shadow_layers(path: Path, cast: Cast) -> None:
    shutil.rmtree(path)
    build_adapter(KIND, cast.base, path, seed=1, num_shadow_layers=3)


def _nothing_there(path: Path, cast: Cast) -> None:
    shutil.rmtree(path)


@pytest.mark.parametrize(
    ("damage", "error", "reason"),
    [
        (_not_a_number, errors.AdapterTensorError, "injection_ups"),
        (_missing_key, errors.AdapterTensorError, "hidden_norm"),
        (_unknown_key, errors.AdapterTensorError, "surprise"),
        (_truncated_file, errors.AdapterFileError, "safetensors"),
        (_broken_config, errors.AdapterConfigError, "shadow_config.json"),
        (_wrong_width, errors.AdapterMismatchError, "96"),
        (_wrong_depth, errors.AdapterMismatchError, "5|6"),
        (_too_wide_rank, errors.AdapterLimitError, "48"),
        (_too_many_shadow_layers, errors.AdapterLimitError, "3"),
        (_nothing_there, errors.AdapterNotFoundError, "adapter"),
    ],
)
def test_a_bad_adapter_is_refused_and_the_engine_goes_on(
    llm: Any,
    cast: Cast,
    tmp_path: Path,
    damage: Callable[[Path, Cast], None],
    error: type[errors.ShadowError],
    reason: str,
) -> None:
    llm.load_adapter("good", cast.adapters[KIND])
    answer(llm, "good")
    path = build_adapter(KIND, cast.base, tmp_path / "adapter", seed=920)
    damage(path, cast)
    state = status(llm)
    with pytest.raises(error, match=reason):
        llm.load_adapter("bad", path)
    assert status(llm) == state
    assert list(llm.adapters) == ["good"]
    llm.llm.reset_prefix_cache()
    check(answer(llm, "good"), oracle_of(cast, cast.adapters[KIND]))


def test_files_that_change_after_validation_are_refused_by_the_worker(
    llm: Any, cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shadow_runtime.vllm_bridge import offline

    path = build_adapter(KIND, cast.base, tmp_path / "adapter", seed=930)
    inspect = offline.inspect_adapter

    def inspect_then_swap(*args: Any) -> Any:
        manifest = inspect(*args)
        build_adapter(KIND, cast.base, path, seed=931)
        return manifest

    monkeypatch.setattr(offline, "inspect_adapter", inspect_then_swap)
    with pytest.raises(errors.DigestMismatchError, match="changed"):
        llm.load_adapter("a", path)
    assert status(llm)["held"] == []
