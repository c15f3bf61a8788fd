"""What travels with a generation request through vLLM beside its body: who asks, with what weight, under which salt.

Runs in: API process (writes) | engine core (the scheduler reads `SamplingParams.extra_args`).

Handlers of completions and chats pass `vllm_xargs` on to the sampling parameters of every sequence, also of `n` over 1.
Beam search does not: it makes parameters of its own, one request for each beam and token. So the running request
is kept in a context variable too, and what a handler starts without a tag is tagged where it is observed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from shadow_runtime.types import RequestTag

TAG_KEY = "shadow_tag"
TENANT_KEY = "shadow_tenant"
WEIGHT_KEY = "shadow_weight"
_RESERVED_PREFIX = "shadow_"


class RunningRequest:
    """One request whose handler runs.

    Attributes:
        tag: of the request.
    """

    def __init__(self, tag: RequestTag) -> None:
        self.tag = tag
        self._beam_prompts: set[str] = set()

    def take_beam(self, request_id: str) -> bool:
        """Return whether vLLM's id `<prompt>-<step>-beam-<number>` is the first one of its prompt."""
        prompt = request_id.rpartition("-beam-")[0].rpartition("-")[0]
        is_new = prompt not in self._beam_prompts
        self._beam_prompts.add(prompt)
        return is_new


running_request: ContextVar[RunningRequest | None] = ContextVar("running_request", default=None)
"""The request whose handler runs in this context; vLLM's tasks for it inherit it."""


def tag_fields(tag: RequestTag) -> dict[str, Any]:
    """Return the entries of `SamplingParams.extra_args`."""
    return {TAG_KEY: tag.tag, TENANT_KEY: tag.tenant, WEIGHT_KEY: tag.weight}


def with_tag(client: Mapping[str, Any] | None, tag: RequestTag) -> dict[str, Any]:
    """Return a client's `vllm_xargs` with the tag; keys that the client may not set are dropped."""
    allowed = {
        key: value for key, value in (client or {}).items() if not key.startswith(_RESERVED_PREFIX)
    }
    return allowed | tag_fields(tag)


def combine_salts(tenant: str | None, client: str | None) -> str | None:
    """Return the salt of a request's prefix blocks; a client's own one only divides its tenant's blocks further."""
    if tenant is None or client is None:
        return tenant or client
    # The length keeps ("a", "bc") apart from ("ab", "c").
    return hashlib.sha256(f"{len(tenant)}:{tenant}{client}".encode()).hexdigest()


def apply_tag(asked: Any, tag: RequestTag) -> None:
    """Write the tag into a parsed completion or chat request and into the context of its handler.

    Called after vLLM has validated what the client sent, so that ours is not validated as the client's.
    """
    running_request.set(RunningRequest(tag))
    asked.vllm_xargs = with_tag(asked.vllm_xargs, tag)
    asked.cache_salt = combine_salts(tag.cache_salt, asked.cache_salt)
