"""What a generation request may say, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

from shadow_client.info import ResponseInfo

Prompt: TypeAlias = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]


class GenerationOptions(TypedDict, total=False):
    """Fields of a request beside its prompt or messages, named as vLLM names them.

    `extra` takes any further field of vLLM's; it wins over the named ones.
    """

    model: str
    max_tokens: int
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    n: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    seed: int
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[str, float]
    logprobs: int | bool
    user: str
    extra: Mapping[str, Any]


class CompletionOptions(GenerationOptions, total=False):
    """`GenerationOptions`, and what only completions have."""

    echo: bool
    suffix: str
    prompt_logprobs: int


class ChatOptions(GenerationOptions, total=False):
    """`GenerationOptions`, and what only chats have."""

    top_logprobs: int
    tools: Sequence[Mapping[str, Any]]
    tool_choice: str | Mapping[str, Any]
    response_format: Mapping[str, Any]
    chat_template_kwargs: Mapping[str, Any]


class Message(TypedDict):
    """One message of a conversation, as OpenAI has them.

    `content` is a text, parts of several kinds, or None beside tool calls; a tool's answer has the `tool_call_id` that
    it answers.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Sequence[Mapping[str, Any]] | None
    name: NotRequired[str]
    tool_calls: NotRequired[Sequence[Mapping[str, Any]]]
    tool_call_id: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request took."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | None = 0


@dataclass(frozen=True, slots=True)
class CompletionChoice:
    """One text; in a stream, one piece of it. `finish_reason` is None until it is whole."""

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to a prompt; in a stream, one chunk of it.

    Attributes:
        id, model, created: as OpenAI has them.
        choices: one for each prompt and `n`; empty in a stream's last chunk, which has the usage.
        usage: None in the other chunks of a stream.
        info: the answer's headers: who answered, rates.
    """

    id: str
    model: str
    created: int
    choices: tuple[CompletionChoice, ...]
    usage: Usage | None = None
    info: ResponseInfo = field(default_factory=ResponseInfo)

    @property
    def text(self) -> str:
        """Text of the first choice, empty when there is none."""
        return self.choices[0].text if self.choices else ""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """What the model says; in a stream, one piece of it."""

    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True)
class ChatChoice:
    """One answer: `message` when it is whole, `delta` in a stream."""

    index: int
    message: ChatMessage | None = None
    delta: ChatMessage | None = None
    finish_reason: str | None = None
    logprobs: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ChatCompletion:
    """The answer to a conversation; in a stream, one chunk of it. Attributes as in `Completion`."""

    id: str
    model: str
    created: int
    choices: tuple[ChatChoice, ...]
    usage: Usage | None = None
    info: ResponseInfo = field(default_factory=ResponseInfo)

    @property
    def text(self) -> str:
        """Content of the first choice, empty when there is none."""
        said = (self.choices[0].message or self.choices[0].delta) if self.choices else None
        return (said.content or "") if said is not None else ""


def request_body(
    options: Mapping[str, Any], adapter: str | None, fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a request's body: options, then the adapter and `fields`, then what is in `extra`."""
    named = {name: value for name, value in options.items() if name != "extra"}
    who = {} if adapter is None else {"adapter": adapter}
    return named | who | dict(fields) | dict(options.get("extra", {}))
