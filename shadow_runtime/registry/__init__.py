"""The API process's truth about adapters: which names answer, what each is, who is using it.

Runs in: API process. Pure Python: imports neither torch nor vllm.
"""

from shadow_runtime.registry.entry import (
    AdapterEntry,
    AdapterHandle,
    AdapterLoader,
    AdapterState,
    LoadOutcome,
)
from shadow_runtime.registry.lease import Lease
from shadow_runtime.registry.name import is_adapter_name
from shadow_runtime.registry.registry import AdapterRegistry

__all__ = [
    "AdapterEntry",
    "AdapterHandle",
    "AdapterLoader",
    "AdapterRegistry",
    "AdapterState",
    "Lease",
    "LoadOutcome",
    "is_adapter_name",
]
