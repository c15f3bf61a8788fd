"""Real vLLM engines for tests: the environment they need, starting and stopping one, and the answers of a batch.

An engine runs inside the test process (no engine-core process, one worker in process): the second engine of a process
then starts in about two seconds instead of thirty, and a test may look into the worker.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
"""Settings of every engine that a test starts; KV-cache space in GiB."""

BLOCK_SIZE = 32
"""Tokens per KV block: small, so that short prompts already have cacheable prefixes."""

NUM_LOGPROBS = 20
ENGINE_ARGS: dict[str, Any] = {
    "skip_tokenizer_init": True,
    "max_model_len": 512,
    "block_size": BLOCK_SIZE,
    "enable_prefix_caching": True,
    "max_num_seqs": 64,
    "enforce_eager": True,
    "seed": 0,
    "disable_log_stats": False,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One request of a batch: the adapter that answers (None for the bare base) and the prompt's token ids."""

    adapter: str | None
    prompt: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine said about one row.

    Attributes:
        tokens: generated token ids of the first sample.
        output_logprobs: for each generated token, token id to logprob of the best tokens and of the chosen one.
        prompt_logprobs: the same for each prompt token but the first; empty when they were not asked for.
        num_cached_tokens: prompt tokens that came from the prefix cache.
    """

    tokens: tuple[int, ...]
    output_logprobs: tuple[dict[int, float], ...]
    prompt_logprobs: tuple[dict[int, float], ...]
    num_cached_tokens: int

    @classmethod
    def of(cls, output: Any, sample: int = 0) -> Answer:
        """Read one sample of a vLLM `RequestOutput`."""
        completion = output.outputs[sample]
        return cls(
            tokens=tuple(completion.token_ids),
            output_logprobs=tuple(_plain(entry) for entry in completion.logprobs or ()),
            prompt_logprobs=tuple(_plain(entry) for entry in (output.prompt_logprobs or ())[1:]),
            num_cached_tokens=output.num_cached_tokens or 0,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form; token ids as keys become strings there."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Answer:
        """Undo `to_dict` after a trip through JSON, which keeps every float bit for bit."""
        return cls(
            tokens=tuple(data["tokens"]),
            output_logprobs=tuple(_numbered(entry) for entry in data["output_logprobs"]),
            prompt_logprobs=tuple(_numbered(entry) for entry in data["prompt_logprobs"]),
            num_cached_tokens=data["num_cached_tokens"],
        )


def _plain(entry: dict[int, Any]) -> dict[int, float]:
    return {token: value.logprob for token, value in entry.items()}


def _numbered(entry: dict[str, float]) -> dict[int, float]:
    return {int(token): value for token, value in entry.items()}


@pytest.fixture(scope="session", autouse=True)
def engine_environment() -> Iterator[None]:
    """Set the environment that engines of this process and of its children read."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, os.environ.get(f"TEST_{name}", value))
        yield


@contextmanager
def shadow_engine(
    model: Path,
    adapters: dict[str, Path] | None = None,
    *,
    max_resident_adapters: int = 4,
    **engine_args: Any,
) -> Iterator[Any]:
    """Run a `ShadowLLM` in fp32; `engine_args` override `ENGINE_ARGS`."""
    from vllm import envs

    from shadow_runtime.slots.derive import SlotOptions
    from shadow_runtime.vllm_bridge.offline import ShadowLLM

    # A running engine freezes its environment; the next one must see what its test has set.
    envs.disable_envs_cache()
    llm = ShadowLLM(
        model=str(model),
        adapters={name: str(path) for name, path in (adapters or {}).items()} or None,
        dtype="float32",
        # No slots for pins: adapters then take turns on exactly the slots that the test names.
        **(
            {
                "options": SlotOptions(
                    max_resident_adapters=max_resident_adapters, max_pinned_adapters=0
                )
            }
            | ENGINE_ARGS
            | engine_args
        ),
    )
    try:
        yield llm
    finally:
        llm.shutdown()
        del llm
        gc.collect()


def sampling(num_tokens: int, *, prompt_logprobs: bool = False, **fields: Any) -> Any:
    """Return greedy `SamplingParams` of exactly `num_tokens` tokens with the best `NUM_LOGPROBS` logprobs."""
    from vllm import SamplingParams

    settings: dict[str, Any] = {
        "temperature": 0.0,
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "detokenize": False,
        "logprobs": NUM_LOGPROBS,
        "prompt_logprobs": NUM_LOGPROBS if prompt_logprobs else None,
    }
    return SamplingParams(**(settings | fields))


def token_prompts(rows: Sequence[Row]) -> list[dict[str, list[int]]]:
    """Return the rows' prompts as vLLM takes them."""
    return [{"prompt_token_ids": list(row.prompt)} for row in rows]


def answer_rows(
    llm: Any, rows: Sequence[Row], num_tokens: int, *, prompt_logprobs: bool = False
) -> list[Answer]:
    """Answer all rows in one batch, greedily."""
    outputs = llm.generate(
        token_prompts(rows),
        sampling(num_tokens, prompt_logprobs=prompt_logprobs),
        [row.adapter for row in rows],
    )
    return [Answer.of(output) for output in outputs]


def random_prompt(length: int, seed: int, *, vocab_size: int = 256) -> tuple[int, ...]:
    """Return `length` uniform token ids."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, vocab_size, (length,), generator=generator).tolist())
