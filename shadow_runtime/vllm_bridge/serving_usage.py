"""Token usage by request tag, taken where vLLM learns that a sequence has ended.

Runs in: API process.

What a client is told is no substitute: usage is missing from streams that do not ask for it, and from every request
whose client went away. So the instance's output processor is observed from a sequence's start to its end, whatever the
end is: a stop, a length, a stop string, an error or an abort.

Seam: `OutputProcessor.add_request`, `_finish_request` and `abort_requests` of vLLM 0.32, replaced on the instance. Can
go once vLLM reports usage of aborted requests by a label of the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from shadow_runtime.errors import UnsupportedStackError
from shadow_runtime.vllm_bridge.request_tag import TAG_KEY, running_request, tag_fields

_SEAMS = ("add_request", "_finish_request", "abort_requests")


class UsageSink(Protocol):
    """Takes the tokens of ended sequences."""

    def observe_usage(self, tag: str, num_prompt_tokens: int, num_generated_tokens: int) -> None:
        """One sequence of the request tagged `tag` ended.

        A prompt is counted with its first sequence only, however many `n` or beam search make of it.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Sequence:
    tag: str
    is_first: bool
    state: Any


class _UsageObserver:
    """Invariant: knows exactly the tagged sequences of the processor's `request_states`."""

    def __init__(self, processor: Any, sink: UsageSink) -> None:
        self._processor = processor
        self._sink = sink
        self._running: dict[str, _Sequence] = {}
        self._add, self._finish, self._abort = (getattr(processor, name) for name in _SEAMS)
        for name, method in zip(_SEAMS, (self.add, self.finish, self.abort), strict=True):
            setattr(processor, name, method)

    def add(
        self,
        request: Any,
        prompt: str | None,
        parent_req: Any = None,
        request_index: int = 0,
        queue: Any = None,
    ) -> None:
        """Start a sequence."""
        is_first = request_index == 0 and self._adopt(request)
        self._add(request, prompt, parent_req, request_index, queue)
        params = request.sampling_params
        tag = None if params is None else (params.extra_args or {}).get(TAG_KEY)
        if tag is not None:
            state = self._processor.request_states[request.request_id]
            self._running[request.request_id] = _Sequence(tag, is_first, state)

    def _adopt(self, request: Any) -> bool:
        """Tag a request that a handler made on its own, for beam search; returns whether its prompt is a new one."""
        running, params = running_request.get(), request.sampling_params
        if running is None or params is None or TAG_KEY in (params.extra_args or {}):
            return True
        # vLLM has cloned the parameters for this request, and sends them to its scheduler after this call.
        params.extra_args = (params.extra_args or {}) | tag_fields(running.tag)
        return running.take_beam(request.external_req_id)

    def finish(self, req_state: Any) -> None:
        """End a sequence that the engine or its own stop string ended."""
        self._finish(req_state)
        self._report(req_state.request_id)

    def abort(self, request_ids: Iterable[str], internal: bool) -> list[str]:
        """End sequences that nobody waits for any more."""
        aborted: list[str] = self._abort(request_ids, internal)
        for request_id in aborted:  # a parent's children have been reported by the call for them
            self._report(request_id)
        return aborted

    def _report(self, request_id: str) -> None:
        ended = self._running.pop(request_id, None)
        if ended is None:
            return
        detokenizer = ended.state.detokenizer
        num_generated = 0 if detokenizer is None else detokenizer.num_output_tokens()
        num_prompt = ended.state.prompt_len if ended.is_first else 0
        self._sink.observe_usage(ended.tag, num_prompt, num_generated)


def observe_usage(output_processor: Any, sink: UsageSink) -> None:
    """Report every tagged sequence that `output_processor` ends from now on to `sink`, exactly once.

    Raises:
        UnsupportedStackError: the processor is not the one that this module knows.
    """
    for name in _SEAMS:
        if not callable(getattr(output_processor, name, None)):
            raise UnsupportedStackError(f"vLLM's output processor has no {name}")
    _UsageObserver(output_processor, sink)
