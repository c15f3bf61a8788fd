"""Which files an adapter may bring and how large they may be.

Runs in: API process. Imports neither torch nor vllm.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import PurePath

from shadow_runtime.errors import AdapterFileError, AdapterLimitError
from shadow_runtime.quote import quote
from shadow_runtime.types import AdapterLimits

ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.json",
    "model.safetensors",
    "shadow_adapter.safetensors",
    "shadow_config.json",
    "shadow_modules.safetensors",
)
"""Every file that either checkpoint format reads; nothing else is ever copied, uploaded or downloaded."""

BACKBONE_FILE = "backbone_config.json"
"""How the store calls the backbone config that an operator gave beside the adapter."""

CANONICAL_FILE = "canonical.safetensors"
"""What the sandbox makes of the other files, for the engine to read; nobody can bring one."""

MAX_CONFIG_BYTES = 1 << 20
"""Of one JSON file."""

# A trainer's directory may hold the base's weights under this name; it counts only where nothing else can.
_TRAINER_FILE = "model.safetensors"
_OWN_TENSOR_FILES = frozenset({"adapter_model.safetensors", "shadow_adapter.safetensors"})
_SPARE_BYTES = 4 * MAX_CONFIG_BYTES
_PICKLES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})


class ByteBudget:
    """The names and bytes that one adapter may still bring.

    Args:
        max_file_bytes: of one safetensors file, and of all files together but for their small configs.
        file_names: what may be there; each name once.
    """

    def __init__(
        self,
        max_file_bytes: int = AdapterLimits().max_file_bytes,
        file_names: Collection[str] = ADAPTER_FILES,
    ) -> None:
        self._max_file_bytes = max_file_bytes
        self._file_names = frozenset(file_names)
        self._names: set[str] = set()
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all files so far."""
        return self._num_bytes

    @property
    def names(self) -> frozenset[str]:
        """Files so far."""
        return frozenset(self._names)

    def add_file(self, name: str) -> None:
        """Count a file that a stranger names.

        Raises:
            AdapterFileError: a pickle, a name that no format has, or one that is there already.
        """
        if PurePath(name).suffix.lower() in _PICKLES:
            raise AdapterFileError(pickle_message(name))
        if name not in self._file_names:
            known = ", ".join(sorted(self._file_names))
            raise AdapterFileError(f"an adapter has no file {quote(name)}; known are {known}")
        if name in self._names:
            raise AdapterFileError(f"the file {quote(name)} is there twice")
        self._names.add(name)

    def check_file_bytes(self, name: str, num_bytes: int) -> None:
        """Raise `AdapterFileError` where a file is larger than one of its kind may be."""
        limit = MAX_CONFIG_BYTES if name.endswith(".json") else self._max_file_bytes
        if num_bytes > limit:
            raise AdapterFileError(
                f"{quote(name)} has {num_bytes} bytes, over the limit of {limit}"
            )

    def spend(self, num_bytes: int) -> None:
        """Count bytes; raises `AdapterLimitError` when all files together are too large."""
        limit = self._max_file_bytes + _SPARE_BYTES
        if self._num_bytes + num_bytes > limit:
            raise AdapterLimitError(
                f"the adapter's files have over {limit} bytes together, which is the server's limit"
            )
        self._num_bytes += num_bytes


def needed_files(names: Iterable[str]) -> list[str]:
    """Return which of the files that are there would be read."""
    present = list(names)
    has_own = not _OWN_TENSOR_FILES.isdisjoint(present)
    return [name for name in present if name != _TRAINER_FILE or not has_own]


def is_pickle(name: str) -> bool:
    """Return whether a file is called as pickled weights are."""
    return PurePath(name).suffix.lower() in _PICKLES


def pickle_message(name: str) -> str:
    """Return why a pickle is refused and what to do about it."""
    return (
        f"{quote(name)} is a pickle, which is never loaded; load it with the package that wrote it and call"
        " save_pretrained to write safetensors"
    )
