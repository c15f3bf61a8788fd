"""The zoo: every hostile or broken adapter is refused with its documented error, before data is read."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adapter_damage import set_tensor
from malicious_adapter import CORPUS, POISONED, Case
from malicious_case import DOWNS, EXPLICIT, PAPER, PEFT, PEFT_EXPLICIT
from shadow_runtime.artifact import load_adapter
from shadow_runtime.artifact.tensor_file import TensorFile
from shadow_runtime.errors import AdapterFileError, AdapterLimitError, AdapterNotFoundError
from shadow_runtime.store.budget import MAX_CONFIG_BYTES
from shadow_runtime.types import AdapterLimits, BaseGeometry

MAX_SECONDS = 3.0
MAX_BYTES = 8 << 20
# An empty list is three bytes of JSON and some hundred once it is parsed.
MAX_PARSED_BYTES_PER_BYTE = 40


def json_bytes(adapter: Path) -> int:
    """Return how much of the adapter's configs is read."""
    sizes = [path.lstat().st_size for path in adapter.glob("*.json")]
    return sum(min(size, MAX_CONFIG_BYTES) for size in sizes)


def refuse(case: Case, adapter: Path, geometry: BaseGeometry) -> None:
    """Assert that the damaged copy is refused as documented, fast, in one short line."""
    case.damage(adapter)
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(case.error, match=case.message) as caught:
        load_adapter(adapter, geometry)
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < MAX_SECONDS
    assert peak < MAX_BYTES + MAX_PARSED_BYTES_PER_BYTE * json_bytes(adapter)
    assert type(caught.value) is case.error
    message = str(caught.value)
    assert len(message) < 500
    assert message.isprintable()
    assert message.isascii()


def test_the_corpus_covers_both_formats_and_every_error() -> None:
    assert len(CORPUS) >= 48
    assert {case.kind for case in CORPUS.values()} == {PAPER, EXPLICIT, PEFT, PEFT_EXPLICIT}
    assert {case.error.code for case in CORPUS.values()} == {
        "adapter_file_invalid",
        "adapter_config_invalid",
        "adapter_tensor_invalid",
        "adapter_base_mismatch",
        "adapter_over_limit",
    }


@pytest.mark.parametrize("name", [name for name in CORPUS if name not in POISONED])
def test_refused_before_any_data_is_read(
    name: str,
    copy: Callable[[str], Path],
    geometry: BaseGeometry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(*_: object) -> torch.Tensor:
        pytest.fail("tensor data was read")

    monkeypatch.setattr(TensorFile, "read", read)
    refuse(CORPUS[name], copy(CORPUS[name].kind), geometry)


@pytest.mark.parametrize("name", POISONED)
def test_poison_is_refused(name: str, copy: Callable[[str], Path], geometry: BaseGeometry) -> None:
    refuse(POISONED[name], copy(POISONED[name].kind), geometry)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_poison_is_found_in_half_precision(
    dtype: torch.dtype, copy: Callable[[str], Path], geometry: BaseGeometry
) -> None:
    adapter = copy(PAPER)
    set_tensor(DOWNS, lambda tensor: tensor.to(dtype))(adapter)
    load_adapter(adapter, geometry)
    refuse(POISONED[f"nan in {DOWNS}"], adapter, geometry)


@pytest.mark.parametrize("kind", [PAPER, EXPLICIT, PEFT, PEFT_EXPLICIT])
def test_undamaged_copies_load(
    kind: str, copy: Callable[[str], Path], geometry: BaseGeometry
) -> None:
    assert load_adapter(copy(kind), geometry).manifest.num_parameters > 0


@pytest.mark.parametrize(
    "path",
    [
        "missing",
        "../missing",
        "x\0y",
        "a" * 300,
        "base/config.json",
        "~root/x",
        "n\u0308" * 100,
        "x\\..\\y",
    ],
)
def test_no_directory_there(path: str, originals: Path, geometry: BaseGeometry) -> None:
    with pytest.raises(AdapterNotFoundError) as caught:
        load_adapter(originals / path, geometry)
    assert str(caught.value).isascii()


@pytest.mark.parametrize(
    "limits",
    [
        AdapterLimits(max_injection_rank=7),
        AdapterLimits(max_gate_size=5),
        AdapterLimits(max_intermediate_size=100),
        AdapterLimits(max_heads=3),
    ],
)
@pytest.mark.parametrize("kind", [PAPER, PEFT])
def test_server_limits_hold(
    kind: str, limits: AdapterLimits, originals: Path, geometry: BaseGeometry
) -> None:
    with pytest.raises(AdapterLimitError, match="the server allows"):
        load_adapter(originals / kind, geometry, limits)


@pytest.mark.parametrize(
    "limits",
    [
        AdapterLimits(max_file_bytes=1000),
        AdapterLimits(max_header_bytes=100),
        AdapterLimits(max_tensors=3),
    ],
)
def test_file_limits_hold(limits: AdapterLimits, originals: Path, geometry: BaseGeometry) -> None:
    with pytest.raises(AdapterFileError, match="over the limit"):
        load_adapter(originals / PAPER, geometry, limits)
