"""Reading tensors: every element counts, and a file that changes underneath is noticed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from shadow_runtime.artifact.tensor_file import TensorFile, is_finite
from shadow_runtime.errors import AdapterError, AdapterFileError
from shadow_runtime.types import AdapterLimits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("num_elements", [1, 7, 64, 1023])
def test_one_bad_element_is_found_wherever_it_is(
    num_elements: int, value: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(num_elements, generator=generator).to(dtype)
    assert is_finite(tensor)
    for position in range(num_elements):
        damaged = tensor.clone()
        damaged[position] = value
        assert not is_finite(damaged)


def open_file(path: Path) -> TensorFile:
    """Open a file with the default limits."""
    return TensorFile(os.open(path, os.O_RDONLY), path.name, AdapterLimits())


def test_reads_what_was_written(tmp_path: Path) -> None:
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    tensors = {str(dtype): values.to(dtype) for dtype in dtypes}
    save_file(tensors, tmp_path / "x", metadata={"format": "pt"})
    with open_file(tmp_path / "x") as file:
        assert file.entries.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(file.read(name), tensor)
            assert file.read(name).dtype == tensor.dtype


def test_a_file_that_shrinks_while_open_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(64)}, tmp_path / "x")
    with open_file(tmp_path / "x") as file:
        os.truncate(tmp_path / "x", os.path.getsize(tmp_path / "x") - 4)
        with pytest.raises(AdapterFileError, match="shorter"):
            file.read("a")


def test_a_refused_file_is_closed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"short")
    descriptor = os.open(tmp_path / "x", os.O_RDONLY)
    with pytest.raises(AdapterFileError):
        TensorFile(descriptor, "x", AdapterLimits())
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)


HEADER = b'{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(st.integers(0, len(HEADER) - 1), st.binary(min_size=1, max_size=3)).map(
            lambda edit: HEADER[: edit[0]] + edit[1] + HEADER[edit[0] + len(edit[1]) :]
        ),
    ),
    st.integers(0, 32),
)
def test_any_bytes_give_tensors_or_a_documented_error(header: bytes, num_data_bytes: int) -> None:
    descriptor = os.memfd_create("fuzz")
    os.write(descriptor, len(header).to_bytes(8, "little") + header + bytes(num_data_bytes))
    with contextlib.suppress(AdapterError), TensorFile(descriptor, "x", AdapterLimits()) as file:
        for name, entry in file.entries.items():
            assert file.read(name).shape == entry.shape
