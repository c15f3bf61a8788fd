"""vLLM's real schedulers without an engine: a worker that answers every step at once, and says what it was given.

The token of request r at position p is `expected_token(r, p)`. So a token that the scheduler loses, doubles or asks for
at a wrong position shows in the answers.
"""

from __future__ import annotations

import zlib
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import torch

from shadow_runtime.config import ShadowConfig

BLOCK_SIZE = 16
VOCAB_SIZE = 200


def expected_token(request_id: str, position: int) -> int:
    """Return the token that the rig's model says at a position of a request."""
    return 3 + zlib.crc32(f"{request_id}/{position}".encode()) % VOCAB_SIZE


def expected_answer(request_id: str, prompt_length: int, num_tokens: int) -> list[int]:
    """Return a whole answer."""
    return [expected_token(request_id, prompt_length + i) for i in range(num_tokens)]


def make_vllm_config(base: Path, shadow: ShadowConfig, **scheduler_args: Any) -> Any:
    """Return a `VllmConfig` for a base's config; `scheduler_args` are of `SchedulerConfig`."""
    from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
    from vllm.config.lora import LoRAConfig

    model = ModelConfig(model=str(base), skip_tokenizer_init=True, dtype="float32", seed=0)
    cache = CacheConfig(block_size=BLOCK_SIZE, enable_prefix_caching=True)
    scheduler: dict[str, Any] = {
        "max_num_seqs": 16,
        "max_num_batched_tokens": 128,
        "max_model_len": model.max_model_len,
        "enable_chunked_prefill": True,
        "is_encoder_decoder": False,
        "async_scheduling": False,
    }
    config = VllmConfig(
        model_config=model,
        cache_config=cache,
        scheduler_config=SchedulerConfig(**(scheduler | scheduler_args)),
        additional_config={"shadow": shadow.to_dict()},
    )
    config.lora_config = LoRAConfig(max_loras=shadow.max_resident_adapters, max_cpu_loras=256)
    # Platforms may switch it off while the config is made; the rig has no platform.
    config.scheduler_config.async_scheduling = scheduler_args.get("async_scheduling", False)
    return config


def make_scheduler(cls: Any, vllm_config: Any, num_blocks: int = 1000) -> Any:
    """Build a scheduler class or factory over an empty cache."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    spec = FullAttentionSpec(
        block_size=BLOCK_SIZE, num_kv_heads=1, head_size=8, dtype=torch.float32
    )
    vllm_config.cache_config.num_gpu_blocks = num_blocks
    return cls(
        vllm_config=vllm_config,
        kv_cache_config=KVCacheConfig(
            num_blocks=num_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        ),
        structured_output_manager=StructuredOutputManager(vllm_config),
        block_size=BLOCK_SIZE,
        log_stats=True,
    )


class SchedulerRig:
    """A scheduler and its worker; `depth` steps are in flight, as with asynchronous scheduling or pipeline stages.

    Attributes:
        scheduler: under test.
        answers: tokens that came out, by request.
        steps: adapters that each step mixed.
    """

    def __init__(self, scheduler: Any, depth: int = 1) -> None:
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

        init_none_hash(sha256)
        self.scheduler = scheduler
        self.answers: defaultdict[str, list[int]] = defaultdict(list)
        self.steps: list[set[int]] = []
        self._depth = depth
        self._in_flight: deque[tuple[Any, Any]] = deque()
        self._hasher = get_request_block_hasher(BLOCK_SIZE, sha256)

    def add(
        self,
        request_id: str,
        adapter: int | None,
        num_tokens: int,
        prompt_length: int = 5,
        extra_args: dict[str, Any] | None = None,
        priority: int = 0,
    ) -> Any:
        """A request arrives; its prompt is its own."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.v1.request import Request

        params = SamplingParams(max_tokens=num_tokens, ignore_eos=True, extra_args=extra_args)
        # The API process does this while it parses a request.
        params.update_from_generation_config({}, eos_token_id=None)
        request = Request(
            request_id=request_id,
            prompt_token_ids=[expected_token(request_id, i) for i in range(prompt_length)],
            sampling_params=params,
            pooling_params=None,
            lora_request=adapter and LoRARequest(f"a{adapter}", adapter, f"/adapters/a{adapter}"),
            block_hasher=self._hasher,
            priority=priority,
        )
        self.scheduler.add_request(request)
        return request

    def step(self) -> Any:
        """Schedule one step and return it; take the output of the one that is `depth` behind."""
        output = self.scheduler.schedule()
        self._in_flight.append((output, self._run(output)))
        while len(self._in_flight) >= self._depth and self._in_flight:
            self._collect()
        return output

    def run(self, max_steps: int = 10_000) -> None:
        """Step until nothing is left."""
        for _ in range(max_steps):
            if not self.scheduler.has_unfinished_requests():
                return
            self.step()
        raise AssertionError("requests are left")

    def _run(self, output: Any) -> Any:
        from vllm.v1.outputs import ModelRunnerOutput

        requests = self.scheduler.requests
        ids = list(output.num_scheduled_tokens)
        self.steps.append(
            {requests[i].lora_request.lora_int_id for i in ids if requests[i].lora_request}
        )
        return ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
            sampled_token_ids=[
                []
                if requests[i].is_prefill_chunk
                else [expected_token(i, requests[i].num_computed_tokens)]
                for i in ids
            ],
        )

    def _collect(self) -> None:
        outputs = self.scheduler.update_from_output(*self._in_flight.popleft())
        for client in outputs.values():
            for output in client.outputs:
                self.answers[output.request_id] += output.new_token_ids
