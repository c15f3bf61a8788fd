"""Client of a ShadowServe server. Imports neither the runtime nor torch, so that it loads in milliseconds.

`Client` and `AsyncClient` are where to begin; `shadow_client.testing` replaces the server in your own tests. What needs
httpx is imported when it is first named: a program that only catches the errors does not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from shadow_client.adapter import (
    Adapter,
    AdapterVersion,
    Deletion,
    Hub,
    Model,
    Problem,
    Progress,
    Validation,
)
from shadow_client.error import (
    AdapterNotReadyError,
    ApiError,
    BadAnswerError,
    ConnectionFailedError,
    ShadowClientError,
    StreamInterruptedError,
    TimedOutError,
)
from shadow_client.generation import ChatCompletion, Completion, Message, Usage
from shadow_client.info import RateLimit, ResponseInfo
from shadow_client.retry import RetryPolicy

if TYPE_CHECKING:
    from shadow_client.async_client import AsyncClient
    from shadow_client.client import Client
    from shadow_client.stream import AsyncStream, Stream

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "AdapterNotReadyError",
    "AdapterVersion",
    "ApiError",
    "AsyncClient",
    "AsyncStream",
    "BadAnswerError",
    "ChatCompletion",
    "Client",
    "Completion",
    "ConnectionFailedError",
    "Deletion",
    "Hub",
    "Message",
    "Model",
    "Problem",
    "Progress",
    "RateLimit",
    "ResponseInfo",
    "RetryPolicy",
    "ShadowClientError",
    "Stream",
    "StreamInterruptedError",
    "TimedOutError",
    "Usage",
    "Validation",
    "__version__",
]

_HOMES = {
    "AsyncClient": "async_client",
    "AsyncStream": "stream",
    "Client": "client",
    "Stream": "stream",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
