"""The error tree. Every error carries a stable snake_case `code` and a message of one sentence for the caller.

Runs in: API process | engine core | GPU worker. Imports neither torch nor vllm.

    ShadowError
    ├── AdapterError                  the adapter is at fault; the server answers 422
    │   ├── AdapterFileError          adapter_file_invalid: missing, truncated, oversized or unsafe file
    │   ├── AdapterConfigError        adapter_config_invalid: a config field is missing, mistyped or out of range
    │   ├── AdapterTensorError        adapter_tensor_invalid: missing or unknown key, wrong shape or dtype, NaN or Inf
    │   ├── AdapterMismatchError      adapter_base_mismatch: made for another base model
    │   └── AdapterLimitError         adapter_over_limit: over a server limit or outside every slot class
    ├── AdapterNotFoundError          adapter_not_found: no such path, name or version; 404
    ├── AdapterExistsError            adapter_exists: the name is taken by other bytes; 409
    ├── AdapterLoadingError           adapter_loading: not resident within the wait; 503, try again
    ├── AdapterFailedError            adapter_failed: registered, but the engine could not load it; 503, try again
    ├── SourceForbiddenError          adapter_source_forbidden: the operator has not allowed this source; 403
    ├── SourceUnavailableError        adapter_source_unavailable: the hub cannot be reached or fails; 503, retry
    ├── QuotaError                    insufficient_quota: the tenant's adapters, bytes or pins are used up; 429
    ├── CapacityError                 adapter_capacity: every place is leased or pinned; 507
    ├── StorageError                  storage_unavailable: the adapter store cannot be read or written; 507
    ├── SandboxError                  sandbox_unavailable: the process that validates adapters cannot run; 503, retry
    ├── CatalogError                  catalog_unavailable: the registry's database cannot be reached; 503, try again
    ├── DigestMismatchError           adapter_changed: the files changed after they were validated; 409
    ├── ConfigError                   config_invalid: a server setting is out of range or contradicts another
    └── UnsupportedStackError         unsupported_stack: vLLM version or model architecture outside what is supported
"""

from __future__ import annotations


class ShadowError(Exception):
    """Base of every error that ShadowServe raises on purpose."""

    code = "shadow_error"


class AdapterError(ShadowError):
    """The adapter itself is at fault."""

    code = "adapter_invalid"


class AdapterFileError(AdapterError):
    """A file of the adapter is missing, truncated, oversized or of an unsafe kind."""

    code = "adapter_file_invalid"


class AdapterConfigError(AdapterError):
    """A config field of the adapter is missing, mistyped or out of range."""

    code = "adapter_config_invalid"


class AdapterTensorError(AdapterError):
    """A tensor is missing, unknown, of the wrong shape or dtype, or holds NaN or Inf."""

    code = "adapter_tensor_invalid"


class AdapterMismatchError(AdapterError):
    """The adapter was made for a base model of another shape."""

    code = "adapter_base_mismatch"


class AdapterLimitError(AdapterError):
    """The adapter is over a server limit or fits no slot class."""

    code = "adapter_over_limit"


class AdapterNotFoundError(ShadowError):
    """No adapter at that path or under that name."""

    code = "adapter_not_found"


class AdapterExistsError(ShadowError):
    """The name is already taken by an adapter with another digest."""

    code = "adapter_exists"


class AdapterLoadingError(ShadowError):
    """A registered adapter was not resident within the time that a request may wait for it."""

    code = "adapter_loading"


class AdapterFailedError(ShadowError):
    """A registered adapter could not be loaded into the engine; its bytes were valid when it was published."""

    code = "adapter_failed"


class SourceForbiddenError(ShadowError):
    """The operator has not allowed loading from this source."""

    code = "adapter_source_forbidden"


class SourceUnavailableError(ShadowError):
    """The place that an adapter comes from cannot be reached, fails, or takes too long."""

    code = "adapter_source_unavailable"


class QuotaError(ShadowError):
    """The tenant has used up a quota that only deleting something gives back."""

    code = "insufficient_quota"


class CapacityError(ShadowError):
    """No room for another adapter: every place is leased or pinned."""

    code = "adapter_capacity"


class StorageError(ShadowError):
    """The adapter store cannot be read or written (a full disk, say)."""

    code = "storage_unavailable"


class SandboxError(ShadowError):
    """The process that validates adapters cannot be started, or ends while it works."""

    code = "sandbox_unavailable"


class CatalogError(ShadowError):
    """The registry's database cannot be reached or refuses to answer."""

    code = "catalog_unavailable"


class DigestMismatchError(ShadowError):
    """The files at an adapter's path changed after they were validated."""

    code = "adapter_changed"


class ConfigError(ShadowError):
    """A server setting is out of range or contradicts another."""

    code = "config_invalid"


class UnsupportedStackError(ShadowError):
    """The vLLM version or the model architecture is outside what is supported."""

    code = "unsupported_stack"
