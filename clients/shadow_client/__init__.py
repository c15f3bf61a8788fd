"""Client of a ShadowServe server. Imports neither the runtime nor torch, so that it loads in milliseconds.

`Client` and `AsyncClient` are where to begin; `shadow_client.testing` replaces the server in your own tests.
"""

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
from shadow_client.async_client import AsyncClient
from shadow_client.client import Client
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
