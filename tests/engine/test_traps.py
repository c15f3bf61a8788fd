"""Ways in which vLLM's internals could break the shadow path without a word; each once cost someone a day."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine_cast import Cast, build_cast
from engine_oracle import LOGPROB_TOLERANCE
from engine_session import Answer, Row, answer_rows, random_prompt, shadow_engine
from reference_adapters import KINDS

LOADED = (KINDS[0], KINDS[2], KINDS[5])
LONG = tuple(
    Row(name, random_prompt(60, seed=5000 + i)) for i, name in enumerate((*LOADED, None, *LOADED))
)
SHORT = (Row(LOADED[0], random_prompt(9, seed=5100)), Row(None, random_prompt(7, seed=5101)))
NUM_TOKENS = 5


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    return build_cast("qwen3", tmp_path_factory.mktemp("traps"))


@pytest.fixture(scope="module")
def llm(cast: Cast) -> Iterator[Any]:
    named = {name: cast.adapters[name] for name in LOADED}
    with shadow_engine(cast.base, named, max_resident_adapters=4) as engine:
        yield engine


def in_worker(llm: Any, look: Callable[[Any], Any]) -> Any:
    """Call `look(worker)` in the only worker, which runs in this process."""
    (found,) = llm.llm.collective_rpc(look)
    return found


def executor_of(worker: Any) -> Any:
    return worker.model_runner.model.shadow


def check(cast: Cast, rows: tuple[Row, ...], answers: list[Answer]) -> None:
    for row, answer in zip(rows, answers, strict=True):
        cast.oracle.check_tokens(row, answer)
        assert cast.oracle.deviation(row, answer).worst <= LOGPROB_TOLERANCE


def test_adapter_memory_is_invisible_to_the_weight_loader(llm: Any) -> None:
    """Parameters that the base's checkpoint does not hold abort vLLM's loader (T2)."""

    def names(worker: Any) -> tuple[list[str], list[str], int]:
        model = worker.model_runner.model
        parameters = [n for n, _ in model.named_parameters() if "shadow" in n]
        stored = [n for n in model.state_dict() if n.startswith("shadow.stacks")]
        return parameters, stored, len(list(executor_of(worker).buffers()))

    parameters, stored, num_buffers = in_worker(llm, names)
    assert (parameters, stored) == ([], [])
    assert num_buffers > 10


def test_stock_and_shadow_never_share_a_compile_cache_key(
    cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM hashes neither worker class nor plugins, only `additional_config` (T4)."""
    from vllm.engine.arg_utils import EngineArgs

    from shadow_runtime import config
    from shadow_runtime.vllm_bridge.engine_args import plan_start, shadow_engine_args

    def key(**engine_args: Any) -> str:
        args = EngineArgs(model=str(cast.base), skip_tokenizer_init=True, **engine_args)
        return args.create_engine_config().compute_hash()

    plan = plan_start(str(cast.base))
    shadow = key(**shadow_engine_args(plan.config))
    assert shadow != key()
    assert shadow != key(enable_lora=True, max_loras=plan.config.max_resident_adapters)
    assert shadow == key(**shadow_engine_args(plan.config))
    monkeypatch.setattr(config, "OPERATOR_ABI", config.OPERATOR_ABI + 1)
    assert shadow != key(**shadow_engine_args(plan.config))


def test_a_dummy_run_keeps_the_real_adapters(llm: Any, cast: Cast) -> None:
    """vLLM removes all adapters after every warm-up, capture and idle run (T6)."""
    check(cast, LONG, answer_rows(llm, LONG, NUM_TOKENS))
    before = llm.worker_status()
    num_adapter_tokens = []

    def dummy_run(worker: Any) -> None:
        runner, executor = worker.model_runner, executor_of(worker)
        seed = executor.seed

        def spy(*args: Any) -> None:
            num_adapter_tokens.append(executor.segments.num_adapter_tokens)
            seed(*args)

        executor.seed = spy
        runner._dummy_run(32, num_active_loras=runner.lora_config.max_loras)
        del executor.seed

    in_worker(llm, dummy_run)
    assert num_adapter_tokens == [32], "the dummy run must take the shadow path"
    assert llm.worker_status() == before
    check(cast, LONG, answer_rows(llm, LONG, NUM_TOKENS, prompt_logprobs=True))


def test_the_tail_of_the_slot_buffer_belongs_to_nobody(llm: Any, cast: Cast) -> None:
    """Padding tokens of a small step must not run as the adapters of a larger one before it (T7)."""
    answer_rows(llm, LONG, 1)
    check(cast, SHORT, answer_rows(llm, SHORT, 1))

    def tail(worker: Any) -> tuple[list[int], bool]:
        segments = executor_of(worker).segments
        segments.check_integrity()
        num_tokens = sum(len(row.prompt) for row in SHORT)
        slots = segments.adapter_slots
        return slots[:num_tokens].unique().tolist(), bool((slots[num_tokens:] == -1).all())

    seen, is_clean = in_worker(llm, tail)
    assert is_clean
    assert len(seen) == 2
    assert -1 in seen


def test_nothing_reads_memory_that_no_token_owns(llm: Any, cast: Cast) -> None:
    """NaN in the state and in every unused slot must not reach an answer (T7)."""

    def poison(worker: Any) -> int:
        executor = executor_of(worker)
        executor.state.fill_(torch.nan)
        stacks = [b for b in executor.stacks.buffers() if b.is_floating_point()]
        for stack in stacks:
            stack.fill_(torch.nan)
        return len(stacks)

    for name in LOADED:
        llm.unload_adapter(name)
    assert in_worker(llm, poison) > 10
    for name in LOADED:
        llm.load_adapter(name, cast.adapters[name])
    llm.llm.reset_prefix_cache()
    check(cast, SHORT, answer_rows(llm, SHORT, NUM_TOKENS, prompt_logprobs=True))
    check(cast, LONG, answer_rows(llm, LONG, NUM_TOKENS, prompt_logprobs=True))


def test_traffic_leaves_the_base_weights_alone(llm: Any, cast: Cast) -> None:
    """The boundary writes in place into what the layers return, which must never be the base's own memory (T7)."""

    def snapshot(worker: Any) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in worker.model_runner.model.named_parameters()}

    before = in_worker(llm, snapshot)
    answer_rows(llm, LONG, NUM_TOKENS)
    after = in_worker(llm, snapshot)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_engine_without_the_plugins_settings_refuses_the_shadow_worker(cast: Cast) -> None:
    """Answering as the bare base, silently, is the one thing that must not happen."""
    from vllm import LLM

    from shadow_runtime.vllm_bridge.engine_args import WORKER_CLASS

    with pytest.raises(Exception, match="has no shadow path"):
        LLM(
            model=str(cast.base),
            skip_tokenizer_init=True,
            dtype="float32",
            enforce_eager=True,
            enable_lora=True,
            worker_cls=WORKER_CLASS,
        )


def test_base_and_backbone_never_share_a_compiled_artefact(llm: Any) -> None:
    """vLLM names an artefact after its region's forward: a backbone of the base's class would get the base's (T3)."""
    from vllm.compilation.decorators import _model_hash_key

    keys = in_worker(llm, lambda w: [_model_hash_key(r.forward) for r in compiled_regions(w)])
    assert len(set(keys)) == len(keys) == 2


def compiled_regions(worker: Any) -> list[Any]:
    model = worker.model_runner.model
    return [model.model, model.shadow.backbone]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_graphs_give_the_same_answers(
    cast: Cast, backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Base and backbone are compiled, also on a second start, which finds the first one's cache (T3).

    vLLM switches compilation off on the CPU when adapters are on, so the test switches it on again in the worker.
    """
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    _compile_in_worker(backend, monkeypatch)
    named = {name: cast.adapters[name] for name in LOADED}
    for _ in range(2):
        with shadow_engine(cast.base, named, max_resident_adapters=4) as llm:
            check(cast, LONG, answer_rows(llm, LONG, NUM_TOKENS, prompt_logprobs=True))
            check(cast, SHORT, answer_rows(llm, SHORT, NUM_TOKENS))
            assert in_worker(llm, lambda w: [_is_compiled(r) for r in compiled_regions(w)]) == [
                True,
                True,
            ]


def _is_compiled(region: Any) -> bool:
    found = region.compiled or getattr(region, "aot_compiled_fn", None) is not None
    return found and not region.do_not_compile


def _compile_in_worker(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.config import CompilationMode

    from shadow_runtime.vllm_bridge.worker import ShadowWorker

    load_model = ShadowWorker.load_model

    def load_compiled(self: Any, **kwargs: Any) -> None:
        compilation = self.vllm_config.compilation_config
        compilation.mode = CompilationMode.DYNAMO_TRACE_ONCE
        compilation.backend = backend
        load_model(self, **kwargs)

    monkeypatch.setattr(ShadowWorker, "load_model", load_compiled)
