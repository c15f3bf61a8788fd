"""What the server tells of adapters, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

AdapterState = Literal["REGISTERED", "LOADING", "RESIDENT", "DRAINING", "FAILED"]
AdapterLevel = Literal["gpu", "host", "disk"]


@dataclass(frozen=True, slots=True)
class Adapter:
    """One version of an adapter.

    Attributes:
        name: as the key's tenant spells it: short for its own, `tenant/name` for others'.
        tenant: owner.
        version: 1 and up; never given twice.
        digest: `sha256:<hex>` over canonical tensors and settings: the identity.
        state: `RESIDENT` answers at once.
        level: nearest place that holds its bytes: a device slot, host memory, the store.
        pinned: keeps its place.
        created: seconds since the epoch.
        format: `paper` or `peft`.
        source: where its files came from.
        num_parameters: elements over all canonical tensors.
        stored_bytes: that its version takes in the store.
        num_running_requests: that hold it now.
        failure: why the engine could not load it, None when it could.
        notes: a sentence for each thing in the files that was ignored on purpose.
        path: of a directory source, relative to the server's root.
        replaced_digest: after a publish or rollback, what the name stood for before.
    """

    name: str
    tenant: str
    version: int
    digest: str
    state: AdapterState
    level: AdapterLevel
    pinned: bool
    created: int
    format: str
    source: str
    num_parameters: int
    stored_bytes: int
    num_running_requests: int
    failure: str | None = None
    notes: tuple[str, ...] = ()
    path: str | None = None
    replaced_digest: str | None = None


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One version of a name.

    Attributes:
        version, digest, source, created, format, num_parameters, stored_bytes: as in `Adapter`.
        is_current: requests that name no version get it.
        origin: `publish` or `rollback`.
    """

    version: int
    is_current: bool
    digest: str
    origin: str
    source: str
    created: int
    format: str
    num_parameters: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Deletion:
    """What became of a deleted adapter.

    Attributes:
        name: that is free now.
        digest: of the version that was current.
        is_gone: False while requests still finish on it.
    """

    name: str
    digest: str
    is_gone: bool


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an adapter is not valid: a code of the table of errors, and one sentence."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a checkpoint; `is_finite` is None when it was not read."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    is_finite: bool | None


@dataclass(frozen=True, slots=True)
class Validation:
    """What the server found in an adapter's files; nothing was changed.

    Attributes:
        is_valid: a publish would be taken, quotas aside.
        error: why not, None when it is valid.
        digest, format, num_parameters, stored_bytes, notes: as in `Adapter`; None where unknown.
        injection_rank, gate_size: widths of its boundary.
        tensor_bytes: of its canonical tensors.
        slot_class, slot_bytes: where it would live, and the device memory that it takes there.
        base_fingerprint: of the base model that it was checked against.
        backbone: geometry of its shadow backbone.
        tensors: of its weight file, as far as the header could be read.
        seconds: that the check took.
    """

    is_valid: bool
    error: Problem | None
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
    backbone: Mapping[str, Any] | None
    tensors: tuple[Tensor, ...]
    notes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Hub:
    """A Hugging Face repository at a pinned commit, `organisation/name` and 40 hex digits."""

    repo: str
    revision: str


@dataclass(frozen=True, slots=True)
class Model:
    """One name that requests may have in `model`: the base, whose `parent` is None, or an adapter."""

    id: str
    created: int
    root: str
    parent: str | None
    max_model_len: int
    digest: str | None = None
    version: int | None = None
    state: str | None = None
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a publish is.

    Attributes:
        stage: `uploading` here, then the server's `reading`, `validated`, `loading`, `registered`, `resident`.
        num_bytes, total_bytes: done and to do; None for stages without bytes.
    """

    stage: str
    num_bytes: int | None = None
    total_bytes: int | None = None
