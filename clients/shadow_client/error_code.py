"""The server's error codes as classes, below the class of their status.

Codes that say no more than their status have none of their own: `conflict` is `ConflictError`. A test holds this
module against the table in docs/errors.md, in both directions.
"""

from __future__ import annotations

from shadow_client.error import (
    ApiError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    HeadersTooLargeError,
    MethodNotAllowedError,
    NotFoundError,
    NotSupportedError,
    OutOfSpaceError,
    PermissionDeniedError,
    RequestTimeoutError,
    RequestTooLargeError,
    ServerError,
    TooManyRequestsError,
    UnavailableError,
    UnprocessableError,
    UnsupportedMediaTypeError,
)


class AdapterConflictError(BadRequestError):
    """`model` and `adapter` name different adapters."""

    own_code = "adapter_conflict"


class AdapterNameInvalidError(BadRequestError):
    """The adapter's name is malformed or the base model's."""

    own_code = "adapter_name_invalid"


class AdapterPathInvalidError(BadRequestError):
    """The path cannot be one."""

    own_code = "adapter_path_invalid"


class InvalidJsonError(BadRequestError):
    """The body is not one strict JSON object."""

    own_code = "invalid_json"


class InvalidMultipartError(BadRequestError):
    """The body is not well-formed multipart/form-data."""

    own_code = "invalid_multipart"


class AdapterPathForbiddenError(PermissionDeniedError):
    """The path is outside the directories open to loading."""

    own_code = "adapter_path_forbidden"


class AdapterSourceForbiddenError(PermissionDeniedError):
    """The operator has not allowed this source."""

    own_code = "adapter_source_forbidden"


class AdminRequiredError(PermissionDeniedError):
    """The route needs an admin's key."""

    own_code = "admin_required"


class BaseModelForbiddenError(PermissionDeniedError):
    """The tenant may not use the bare base model."""

    own_code = "base_model_forbidden"


class AdapterNotFoundError(NotFoundError):
    """No adapter, version or path of that name; another tenant's adapters answer the same."""

    own_code = "adapter_not_found"


class ModelNotFoundError(NotFoundError):
    """No model or adapter of that name."""

    own_code = "model_not_found"


class RouteNotFoundError(NotFoundError):
    """No such route."""

    own_code = "route_not_found"


class AdapterChangedError(ConflictError):
    """The files changed after they were validated."""

    own_code = "adapter_changed"


class AdapterExistsError(ConflictError):
    """The name is taken by other bytes."""

    own_code = "adapter_exists"


class AdapterBaseMismatchError(UnprocessableError):
    """The adapter was made for another base model."""

    own_code = "adapter_base_mismatch"


class AdapterConfigInvalidError(UnprocessableError):
    """A config field is missing, mistyped or out of range."""

    own_code = "adapter_config_invalid"


class AdapterFileInvalidError(UnprocessableError):
    """A file is missing, truncated, too large or of an unsafe kind."""

    own_code = "adapter_file_invalid"


class AdapterInvalidError(UnprocessableError):
    """The adapter itself is at fault."""

    own_code = "adapter_invalid"


class AdapterOverLimitError(UnprocessableError):
    """The adapter is over a server limit or fits no slot class."""

    own_code = "adapter_over_limit"


class AdapterTensorInvalidError(UnprocessableError):
    """A tensor is missing, unknown, of the wrong shape or dtype, or holds NaN or Inf."""

    own_code = "adapter_tensor_invalid"


class InsufficientQuotaError(TooManyRequestsError):
    """A quota is used up that only deleting or unpinning something gives back."""

    own_code = "insufficient_quota"


class RateLimitExceededError(TooManyRequestsError):
    """Too many requests or tokens a minute, or too many requests at once."""

    own_code = "rate_limit_exceeded"
    is_retryable = True


class ConfigInvalidError(ServerError):
    """A server setting is out of range or contradicts another."""

    own_code = "config_invalid"


class ShadowError(ServerError):
    """An error without a rule of its own."""

    own_code = "shadow_error"


class UnsupportedStackError(ServerError):
    """The vLLM version or the model architecture is not supported."""

    own_code = "unsupported_stack"


class AdapterFailedError(UnavailableError):
    """The adapter is registered and the engine could not load it."""

    own_code = "adapter_failed"


class AdapterLoadingError(UnavailableError):
    """The adapter was not resident within the wait; it is still on its way."""

    own_code = "adapter_loading"


class AdapterSourceUnavailableError(UnavailableError):
    """The hub cannot be reached, fails, or takes too long."""

    own_code = "adapter_source_unavailable"


class CatalogUnavailableError(UnavailableError):
    """The registry's database cannot be reached."""

    own_code = "catalog_unavailable"


class NotReadyError(UnavailableError):
    """The engine is not ready, or no longer."""

    own_code = "not_ready"


class SandboxUnavailableError(UnavailableError):
    """The process that validates adapters cannot run at the moment."""

    own_code = "sandbox_unavailable"


class ServerOverloadedError(UnavailableError):
    """The queue is full."""

    own_code = "server_overloaded"


class AdapterCapacityError(OutOfSpaceError):
    """Every place is leased or pinned."""

    own_code = "adapter_capacity"


class InsufficientStorageError(OutOfSpaceError):
    """No room is left."""

    own_code = "insufficient_storage"


class StorageUnavailableError(OutOfSpaceError):
    """The adapter store cannot be read or written."""

    own_code = "storage_unavailable"


CODE_ERRORS: dict[str, type[ApiError]] = {
    "adapter_base_mismatch": AdapterBaseMismatchError,
    "adapter_capacity": AdapterCapacityError,
    "adapter_changed": AdapterChangedError,
    "adapter_config_invalid": AdapterConfigInvalidError,
    "adapter_conflict": AdapterConflictError,
    "adapter_exists": AdapterExistsError,
    "adapter_failed": AdapterFailedError,
    "adapter_file_invalid": AdapterFileInvalidError,
    "adapter_invalid": AdapterInvalidError,
    "adapter_loading": AdapterLoadingError,
    "adapter_name_invalid": AdapterNameInvalidError,
    "adapter_not_found": AdapterNotFoundError,
    "adapter_over_limit": AdapterOverLimitError,
    "adapter_path_forbidden": AdapterPathForbiddenError,
    "adapter_path_invalid": AdapterPathInvalidError,
    "adapter_source_forbidden": AdapterSourceForbiddenError,
    "adapter_source_unavailable": AdapterSourceUnavailableError,
    "adapter_tensor_invalid": AdapterTensorInvalidError,
    "admin_required": AdminRequiredError,
    "base_model_forbidden": BaseModelForbiddenError,
    "catalog_unavailable": CatalogUnavailableError,
    "config_invalid": ConfigInvalidError,
    "conflict": ConflictError,
    "forbidden": PermissionDeniedError,
    "headers_too_large": HeadersTooLargeError,
    "insufficient_quota": InsufficientQuotaError,
    "insufficient_storage": InsufficientStorageError,
    "internal_error": ServerError,
    "invalid_api_key": AuthenticationError,
    "invalid_json": InvalidJsonError,
    "invalid_multipart": InvalidMultipartError,
    "invalid_request": BadRequestError,
    "method_not_allowed": MethodNotAllowedError,
    "model_not_found": ModelNotFoundError,
    "not_found": NotFoundError,
    "not_implemented": NotSupportedError,
    "not_ready": NotReadyError,
    "rate_limit_exceeded": RateLimitExceededError,
    "request_timeout": RequestTimeoutError,
    "request_too_large": RequestTooLargeError,
    "route_not_found": RouteNotFoundError,
    "sandbox_unavailable": SandboxUnavailableError,
    "server_overloaded": ServerOverloadedError,
    "shadow_error": ShadowError,
    "storage_unavailable": StorageUnavailableError,
    "unavailable": UnavailableError,
    "unprocessable": UnprocessableError,
    "unsupported_media_type": UnsupportedMediaTypeError,
    "unsupported_stack": UnsupportedStackError,
}
"""The class of each code of the table; the engine may send codes of its own beside these."""
