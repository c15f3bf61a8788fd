"""How many tokens a request may take, guessed from its body before the engine has seen it.

Runs in: API process.

Only a reservation: what the request really took replaces it when it has ended. So it needs no tokenizer, and a body
that the engine will refuse may be guessed at badly.
"""

from __future__ import annotations

from typing import Any

UNBOUNDED_ANSWER_TOKENS = 1024
"""Reserved for an answer without a bound of its own; what goes beyond is charged when it has been generated."""

_COMPLETION_ANSWER_TOKENS = 16
_BYTES_PER_TOKEN = 4
_MESSAGE_TOKENS = 4
_MAX_CHOICES = 1 << 16


def estimate_tokens(body: dict[str, Any], max_model_len: int) -> int:
    """Return prompt tokens and, for every choice of every prompt, the longest answer.

    Args:
        body: of a completion or chat request, not validated.
        max_model_len: bound of each prompt and of each answer.
    """
    prompts = _prompt_lengths(body)
    answer = min(_answer_length(body), max_model_len)
    choices = _whole(body.get("n"), 1)
    num_prompt = sum(min(length, max_model_len) for length in prompts)
    return num_prompt + len(prompts) * min(choices, _MAX_CHOICES) * answer


def _prompt_lengths(body: dict[str, Any]) -> list[int]:
    if "prompt" not in body:
        return [_messages_length(body.get("messages"))]
    prompt = body["prompt"]
    is_many = isinstance(prompt, list) and any(isinstance(part, str | list) for part in prompt)
    return [_length(part) for part in prompt] if is_many else [_length(prompt)]


def _length(prompt: object) -> int:
    if isinstance(prompt, str):
        return len(prompt.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN + 1
    return len(prompt) if isinstance(prompt, list) else 0


def _messages_length(messages: object) -> int:
    if not isinstance(messages, list):
        return 0
    return sum(
        _MESSAGE_TOKENS + _content_length(message.get("content"))
        for message in messages
        if isinstance(message, dict)
    )


def _content_length(content: object) -> int:
    if isinstance(content, list):
        return sum(_length(part.get("text")) for part in content if isinstance(part, dict))
    return _length(content)


def _answer_length(body: dict[str, Any]) -> int:
    for field in ("max_completion_tokens", "max_tokens"):
        if body.get(field) is not None:
            return _whole(body[field], 0)
    is_completion = "prompt" in body and "max_tokens" not in body
    return _COMPLETION_ANSWER_TOKENS if is_completion else UNBOUNDED_ANSWER_TOKENS


def _whole(value: object, default: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        return default
    return max(value, 0)
