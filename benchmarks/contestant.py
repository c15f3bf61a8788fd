"""One engine under measurement in a process of its own, asked for one timing at a time.

Several of them are started at once and then measured in turn on one device: whatever the machine does meanwhile falls
on all of them alike, and their starts, minutes each on a GPU, overlap.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_PROFILED_TOKENS = 6  # a prefill and five decode steps


@dataclass(frozen=True)
class Job:
    """What an engine is.

    Attributes:
        mode: "base" (vLLM without this plugin), "lora" (vLLM's multi-LoRA) or "shadow".
        model: directory of the base.
        adapters: name to directory.
        arguments: of `vllm.LLM`; for "shadow" of `ShadowLLM`, with a slot for each adapter unless they say more.
        environment: variables of the process.
        vocab: size of the base's vocabulary.
    """

    mode: str
    model: str
    adapters: Mapping[str, str]
    arguments: Mapping[str, Any]
    vocab: int
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One batch of equal requests.

    Attributes:
        batch: requests at once.
        distinct: adapters that they use in turn; 0 asks for the bare base.
        phase: "decode" times one output token, "prefill" the whole batch's prompts.
        prompt_tokens: of every request.
    """

    batch: int
    distinct: int
    phase: str
    prompt_tokens: int


@dataclass(frozen=True)
class KernelRun:
    """One run of a kernel on the device, in microseconds since an arbitrary moment."""

    name: str
    start_us: float
    duration_us: float

    @property
    def end_us(self) -> float:
        """When it ended."""
        return self.start_us + self.duration_us


class ContestantError(RuntimeError):
    """An engine could not be started or did not answer; the message holds its traceback."""


class Contestant:
    """A started engine process.

    Raises, from every method: ContestantError.
    """

    def __init__(self, job: Job, new_tokens: int) -> None:
        """Begin to start; a decode step is timed over answers of `new_tokens`."""
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        words = (job, new_tokens, other)
        self._process = context.Process(target=_run, args=words, name=job.mode)
        with _variables(job.environment):
            self._process.start()
        other.close()

    def wait_until_ready(self) -> float:
        """Return the seconds that the start took."""
        return float(self._receive())

    def measure(self, case: Case) -> float:
        """Return milliseconds, see `Case.phase`."""
        self._pipe.send(("measure", case))
        return float(self._receive())

    def profile(self, case: Case) -> list[KernelRun]:
        """Return the device's kernels of a few steps in their order; needs a job with `profiler_config`."""
        self._pipe.send(("profile", case))
        return [KernelRun(*words) for words in self._receive()]

    def stop(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(60)
        self._process.kill()

    def _receive(self) -> Any:
        try:
            is_right, value = self._pipe.recv()
        except EOFError:
            raise ContestantError(f"the engine {self._process.name} ended") from None
        if not is_right:
            raise ContestantError(value)
        return value


def _run(job: Job, new_tokens: int, pipe: Connection) -> None:
    try:
        started = time.perf_counter()
        engine = _Engine(job, new_tokens)
        pipe.send((True, time.perf_counter() - started))
        _serve(engine, pipe)
    except Exception:
        pipe.send((False, traceback.format_exc()))


def _serve(engine: _Engine, pipe: Connection) -> None:
    """Answer until the other end is closed."""
    try:
        while True:
            method, case = pipe.recv()
            pipe.send((True, getattr(engine, method)(case)))
    except EOFError:
        return
    finally:
        # A process of multiprocessing ends without the finalizers that would stop vLLM's.
        engine.shutdown()


class _Engine:
    def __init__(self, job: Job, new_tokens: int) -> None:
        self._random = random.Random(0)
        self._job = job
        self._new_tokens = new_tokens
        self._warm: set[Case] = set()
        self._llm, self._requests = _start(job)

    def measure(self, case: Case) -> float:
        """Return the milliseconds of a case, which has run once before."""
        if case not in self._warm:
            self._generate(case, 4)
            self._warm.add(case)
        if case.phase == "decode":
            return 1e3 * _seconds_a_token(self._generate(case, self._new_tokens))
        started = time.perf_counter()
        self._generate(case, 1)
        return 1e3 * (time.perf_counter() - started)

    def profile(self, case: Case) -> list[tuple[str, float, float]]:
        """Return name, start and duration of the kernels of a prefill and some decode steps."""
        folder = Path(self._job.arguments["profiler_config"]["torch_profiler_dir"])
        before = set(folder.glob("*.json"))
        self._llm.start_profile()
        self._generate(case, _PROFILED_TOKENS)
        self._llm.stop_profile()
        (trace,) = set(folder.glob("*.json")) - before
        return read_kernels(json.loads(trace.read_text()))

    def shutdown(self) -> None:
        """End the engine's own processes."""
        self._llm.llm_engine.engine_core.shutdown()

    def _generate(self, case: Case, new_tokens: int) -> list[Any]:
        from vllm import SamplingParams

        prompts = [
            {"prompt_token_ids": self._random.choices(range(10, self._job.vocab), k=length)}
            for length in [case.prompt_tokens] * case.batch
        ]
        sampling = SamplingParams(
            temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False
        )
        requests = [
            self._requests[i % case.distinct] if case.distinct else None for i in range(case.batch)
        ]
        return self._llm.generate(prompts, sampling, lora_request=requests, use_tqdm=False)


def _seconds_a_token(outputs: list[Any]) -> float:
    """Return what the last request to begin took for a token after its first: none of the others' prompts lie in there.

    By the engine's own clock. The difference of two whole answers would hold what their prompts took once more and once
    less; samples taken so lay up to 0.9 ms a token apart.
    """
    last = max(outputs, key=lambda output: output.metrics.first_token_ts)
    steps = len(last.outputs[0].token_ids) - 1
    return (last.metrics.last_token_ts - last.metrics.first_token_ts) / steps


def read_kernels(trace: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Return name, start and duration of a Chrome trace's kernels and copies, in the order of their starts."""
    return sorted(
        (
            (event["name"], event["ts"], event["dur"])
            for event in trace["traceEvents"]
            if event.get("cat") in {"kernel", "gpu_memcpy", "gpu_memset"}
        ),
        key=lambda event: event[1],
    )


def _start(job: Job) -> tuple[Any, list[Any]]:
    """Return vLLM's engine and the requests that name its adapters."""
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    if job.mode == "shadow":
        from shadow_runtime.vllm_bridge.offline import ShadowLLM

        arguments = {"max_resident_adapters": max(1, len(job.adapters))} | dict(job.arguments)
        shadow = ShadowLLM(job.model, job.adapters, **arguments)
        return shadow.llm, [handle.request for handle in shadow.adapters.values()]
    requests = [
        LoRARequest(name, number, path)
        for number, (name, path) in enumerate(job.adapters.items(), start=1)
    ]
    return LLM(model=job.model, **job.arguments), requests


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
