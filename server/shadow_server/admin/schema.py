"""Bodies of the adapter routes, asked and answered.

Runs in: API process.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_PATH_CHARACTERS = 4096


class HubReference(BaseModel):
    """A repository of a model hub at a pinned revision."""

    model_config = ConfigDict(extra="forbid", strict=True)

    repo: str = Field(max_length=256, description="`organisation/name`, allowed by the operator.")
    revision: str = Field(max_length=64, description="A commit: 40 hexadecimal digits.")


class AdapterSource(BaseModel):
    """Where an adapter's files are; exactly one of `path` and `hub`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    path: str | None = Field(None, description="A directory below one of the server's roots.")
    hub: HubReference | None = None
    backbone_config: str | None = Field(
        None, description="Config file of an explicit shadow backbone, below a root; with `path`."
    )


class PublishAdapter(AdapterSource):
    """POST /v1/adapters as JSON."""

    name: str
    wait: bool = Field(True, description="Answer when it is resident, not when it is registered.")
    stream: bool = Field(False, description="Answer with progress as server-sent events.")
    can_replace: bool = Field(True, description="False: 409 when the name has other bytes.")


class PublishUpload(BaseModel):
    """The fields of POST /v1/adapters as multipart/form-data, beside its files."""

    model_config = ConfigDict(extra="forbid")

    name: str
    wait: bool = True
    stream: bool = False
    can_replace: bool = True


class ValidateUpload(BaseModel):
    """POST /v1/adapters/validate as multipart/form-data takes files only."""

    model_config = ConfigDict(extra="forbid")


class Rollback(BaseModel):
    """POST /v1/adapters/{name}/rollback; an empty body is one without fields."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: int | None = Field(
        None,
        ge=1,
        le=999_999_999,
        description="Absent or null: the newest earlier version with other bytes.",
    )


class LoadLoraAdapter(BaseModel):
    """POST /v1/load_lora_adapter, with the fields that vLLM gives it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class UnloadLoraAdapter(BaseModel):
    """POST /v1/unload_lora_adapter, with the fields that vLLM gives it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    lora_name: str


class AdapterCard(BaseModel):
    """One version of an adapter."""

    id: str = Field(description="The name as the caller spells it.")
    object: Literal["adapter"]
    name: str
    tenant: str
    version: int
    digest: str = Field(description="sha256 over canonical tensors and config: the identity.")
    state: Literal["REGISTERED", "LOADING", "RESIDENT", "DRAINING", "FAILED"]
    level: Literal["gpu", "host", "disk"]
    pinned: bool
    created: int
    format: str
    source: str
    path: str | None = Field(description="Of a directory source, relative to its root.")
    num_parameters: int
    stored_bytes: int
    num_running_requests: int
    failure: str | None
    notes: list[str]
    replaced_digest: str | None = Field(
        None, description="After a publish: the digest that the name had before."
    )


class AdapterList(BaseModel):
    """GET /v1/adapters."""

    object: Literal["list"]
    data: list[AdapterCard]


class DeletedAdapter(BaseModel):
    """DELETE /v1/adapters/{name} once the adapter has left."""

    id: str
    object: Literal["adapter"]
    deleted: Literal[True]
    digest: str


class VersionCard(BaseModel):
    """One version of a name."""

    object: Literal["adapter.version"]
    version: int
    is_current: bool
    digest: str
    origin: Literal["publish", "rollback"]
    source: str
    created: int
    format: str
    num_parameters: int
    stored_bytes: int


class VersionList(BaseModel):
    """GET /v1/adapters/{name}/versions, oldest first."""

    object: Literal["list"]
    data: list[VersionCard]


class ReportedProblem(BaseModel):
    """Why an adapter is not valid."""

    code: str
    message: str


class ReportedTensor(BaseModel):
    """One tensor of a checkpoint; `is_finite` is null when it was not read."""

    name: str
    dtype: str
    shape: list[int]
    num_bytes: int
    is_finite: bool | None


class ValidationCard(BaseModel):
    """POST /v1/adapters/validate: 200 for a bad adapter too, with the reason in `error`."""

    object: Literal["adapter.validation"]
    is_valid: bool
    error: ReportedProblem | None
    digest: str | None
    format: str | None
    injection_rank: int | None
    gate_size: int | None
    num_parameters: int | None
    tensor_bytes: int | None
    stored_bytes: int | None
    slot_class: str | None
    slot_bytes: int | None
    base_fingerprint: str | None
    backbone: dict[str, Any] | None
    tensors: list[ReportedTensor]
    notes: list[str]
    seconds: float
