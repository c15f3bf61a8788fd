"""The error tree. Every error carries a stable snake_case `code` and a message of one sentence for the caller.

Runs in: API process | engine core | GPU worker. Imports neither torch nor vllm.

    ShadowError
    ├── AdapterError                  the adapter is at fault; the server answers 422
    │   ├── AdapterFileError          adapter_file_invalid: missing, truncated, oversized or unsafe file
    │   ├── AdapterConfigError        adapter_config_invalid: a config field is missing, mistyped or out of range
    │   ├── AdapterTensorError        adapter_tensor_invalid: missing or unknown key, wrong shape or dtype, NaN or Inf
    │   ├── AdapterMismatchError      adapter_base_mismatch: made for another base model
    │   └── AdapterLimitError         adapter_over_limit: over a server limit or outside every slot class
    ├── AdapterNotFoundError          adapter_not_found: no such path or name; 404
    ├── AdapterExistsError            adapter_exists: the name is taken by other bytes; 409
    ├── CapacityError                 adapter_capacity: the host tier is full; 507
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


class CapacityError(ShadowError):
    """No room for another adapter in the host tier."""

    code = "adapter_capacity"


class DigestMismatchError(ShadowError):
    """The files at an adapter's path changed after they were validated."""

    code = "adapter_changed"


class ConfigError(ShadowError):
    """A server setting is out of range or contradicts another."""

    code = "config_invalid"


class UnsupportedStackError(ShadowError):
    """The vLLM version or the model architecture is outside what is supported."""

    code = "unsupported_stack"
