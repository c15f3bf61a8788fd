"""The API process's truth about adapters: which names answer, what each is, and who is using it.

Runs in: API process. Pure Python: imports neither torch nor vllm.
"""

from shadow_runtime.registry.entry import (
    AdapterEntry,
    AdapterLoader,
    AdapterState,
    EvictReason,
    Level,
    LoadSource,
    NoEvents,
    Progress,
    PublishOutcome,
    RegistryEvents,
    RegistrySettings,
    Validator,
)
from shadow_runtime.registry.lease import Lease
from shadow_runtime.registry.name import is_adapter_name, is_tenant_name, parse_adapter
from shadow_runtime.registry.opening import open_catalog, open_registry
from shadow_runtime.registry.registry import AdapterRegistry

__all__ = [
    "AdapterEntry",
    "AdapterLoader",
    "AdapterRegistry",
    "AdapterState",
    "EvictReason",
    "Lease",
    "Level",
    "LoadSource",
    "NoEvents",
    "Progress",
    "PublishOutcome",
    "RegistryEvents",
    "RegistrySettings",
    "Validator",
    "is_adapter_name",
    "is_tenant_name",
    "open_catalog",
    "open_registry",
    "parse_adapter",
]
