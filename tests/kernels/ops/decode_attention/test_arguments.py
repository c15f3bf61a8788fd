"""What `decode_attention` says of arguments that do not fit, and of devices without a kernel."""

import dataclasses

import pytest
import torch

from shadow_kernels import (
    BackendUnavailableError,
    ShapeError,
    UnsupportedDtypeError,
    decode_attention,
    has_fast_decode_attention,
    new_arrivals,
    takes_decode_attention,
)
from shadow_kernels.ops.decode_attention.cuda import has_kernel_for, has_kernel_of
from shadow_kernels.testing_attention import Sizes, make_decode_case

NAMES = ("query", "key_cache", "value_cache", "block_table", "seq_lens", "scale", "out")


def call(**changes):
    case = make_decode_case([5, 40])
    arguments = dict(zip(NAMES, (*case.arguments, torch.empty_like(case.query)), strict=True))
    for name, change in changes.items():
        arguments[name] = change(arguments[name])
    decode_attention(**arguments, arrivals=torch.zeros(8, dtype=torch.int32))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("query", lambda tensor: tensor[0]),
        ("query", lambda tensor: tensor[:, :7]),
        ("key_cache", lambda tensor: tensor[..., :64]),
        ("value_cache", lambda tensor: tensor[:1]),
        ("out", lambda tensor: tensor[:1]),
        ("block_table", lambda tensor: tensor[:1]),
        ("block_table", lambda tensor: tensor.T.contiguous().T),
        ("seq_lens", lambda tensor: tensor[:1]),
    ],
)
def test_shapes(name, change):
    with pytest.raises(ShapeError, match=name):
        call(**{name: change})


@pytest.mark.parametrize("name", ["query", "key_cache", "value_cache", "out"])
def test_dtypes(name):
    with pytest.raises(UnsupportedDtypeError, match=name):
        call(**{name: torch.Tensor.float})


@pytest.mark.parametrize("name", ["block_table", "seq_lens"])
def test_integers(name):
    with pytest.raises(UnsupportedDtypeError, match=name):
        call(**{name: torch.Tensor.long})


def test_a_device_without_kernel():
    with pytest.raises(BackendUnavailableError, match="decode_attention"):
        call()
    with pytest.raises(BackendUnavailableError, match="decode_attention"):
        new_arrivals(torch.device("cpu"))
    case = make_decode_case([5])
    assert not takes_decode_attention(
        case.query, case.key_cache, case.value_cache, torch.empty_like(case.query)
    )
    assert not has_fast_decode_attention("cpu", torch.bfloat16, 32, 8, 128)


def takes(case, out=None):
    out = torch.empty_like(case.query) if out is None else out
    return has_kernel_for(case.query, case.key_cache, case.value_cache, out)


def test_layouts_that_the_kernel_takes():
    for page_size in (16, 128):
        assert takes(make_decode_case([5], Sizes(page_size=page_size)))
    assert takes(make_decode_case([5], heads_outside=True))
    assert takes(make_decode_case([5], Sizes(2, 1, 64)))
    for page_size in (8, 48):
        assert not takes(make_decode_case([5], Sizes(page_size=page_size)))
    case = make_decode_case([5, 6])
    assert not takes(case, torch.empty_like(case.query, dtype=torch.float16))
    other_cache = make_decode_case([5, 6], dtype=torch.float16)
    assert not takes(dataclasses.replace(other_cache, query=case.query))
    assert not takes(case, torch.empty(2, 128, 8, dtype=torch.bfloat16).transpose(1, 2))
    wide = torch.empty(2, 8, 136, dtype=torch.bfloat16)
    assert not takes(case, wide[..., :128])
    assert not takes(case, torch.empty(2 * 8 * 128 + 1, dtype=torch.bfloat16)[1:].view(2, 8, 128))
    assert not takes(
        case, torch.empty(2, 8 * 128 + 4, dtype=torch.bfloat16)[:, :1024].view(2, 8, 128)
    )


def test_one_head_of_keys_may_have_any_distance_to_the_next():
    case = make_decode_case([5], Sizes(4, 1))
    keys, values = (
        tensor.as_strided(tensor.shape, (*tensor.stride()[:2], 1, 1), tensor.storage_offset())
        for tensor in (case.key_cache, case.value_cache)
    )
    assert has_kernel_for(case.query, keys, values, torch.empty_like(case.query))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((torch.float16, 64, 8, 64), True),
        ((torch.float32, 32, 8, 128), False),
        ((torch.bfloat16, 32, 8, 96), False),
        ((torch.bfloat16, 32, 3, 128), False),
        ((torch.bfloat16, 36, 4, 128), False),
    ],
)
def test_sizes_that_the_kernel_takes(sizes, expected):
    assert has_kernel_of(*sizes) is expected
