"""Hostile weight files, and hostile things in place of files."""

from __future__ import annotations

import gzip
import json
import os

import torch

from adapter_damage import (
    config_file,
    set_entry,
    set_header,
    set_tensor,
    tensor_file,
    write_bytes,
)
from malicious_case import (
    DEEP,
    DOWNS,
    EXPLICIT,
    PAPER,
    PEFT,
    PEFT_EXPLICIT,
    TENSOR,
    Case,
    backbone_file,
    link_out,
    many_tensors,
    pickled,
    replace_by,
    sparse,
    trained_head,
)
from shadow_runtime.errors import (
    AdapterConfigError,
    AdapterFileError,
    AdapterTensorError,
)

FILES: dict[str, Case] = {
    "empty file": Case(PAPER, write_bytes(lambda _: b""), AdapterFileError, "truncated"),
    "truncated length": Case(PAPER, write_bytes(lambda d: d[:5]), AdapterFileError, "truncated"),
    "truncated header": Case(PAPER, write_bytes(lambda d: d[:64]), AdapterFileError, "truncated"),
    "truncated data": Case(PEFT, write_bytes(lambda d: d[:-1]), AdapterFileError, "truncated"),
    "trailing bytes": Case(PEFT, write_bytes(lambda d: d + b"x"), AdapterFileError, "trailing"),
    "header length 2^63": Case(
        PAPER,
        write_bytes(lambda d: (1 << 63).to_bytes(8, "little") + d[8:]),
        AdapterFileError,
        "truncated",
    ),
    "header over its cap": Case(
        PAPER, set_header(lambda h: json.dumps(h) + " " * (1 << 20)), AdapterFileError, "header"
    ),
    "header not JSON": Case(PAPER, set_header(lambda _: "{]"), AdapterFileError, "JSON"),
    "header not UTF-8": Case(
        PAPER, write_bytes(lambda _: (2).to_bytes(8, "little") + b"{\xff"), AdapterFileError, "JSON"
    ),
    "header a list": Case(PAPER, set_header(lambda _: "[]"), AdapterFileError, "safetensors"),
    "header deep": Case(
        PAPER, set_header(lambda _: '{"a":' + DEEP + "}"), AdapterFileError, "nests"
    ),
    "header repeats a key": Case(
        PAPER,
        set_header(lambda h: json.dumps(h)[:-1] + ", " + json.dumps(h)[1:]),
        AdapterFileError,
        "twice",
    ),
    "100,000 tensors": Case(
        PAPER, set_header(lambda _: many_tensors(100_000)), AdapterFileError, "header"
    ),
    "9,000 tensors": Case(
        PAPER, set_header(lambda _: many_tensors(9_000)), AdapterFileError, "9000 tensors"
    ),
    "overlapping offsets": Case(
        PAPER,
        set_header(lambda h: json.loads(many_tensors(2))),
        AdapterFileError,
        "overlap",
    ),
    "gap before the first": Case(
        PAPER,
        set_header(lambda _: {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}),
        AdapterFileError,
        "gaps",
    ),
    "entry without shape": Case(
        PAPER, set_header(lambda _: {"a": {"dtype": "F32"}}), AdapterFileError, "malformed"
    ),
    "entry not an object": Case(
        PAPER, set_header(lambda _: {"a": 1}), AdapterFileError, "malformed"
    ),
    "negative size": Case(PAPER, set_entry(shape=[-1, -1]), AdapterFileError, "malformed"),
    "size a boolean": Case(PAPER, set_entry(shape=[True]), AdapterFileError, "malformed"),
    "size 2^60": Case(PAPER, set_entry(shape=[1 << 60, 16]), AdapterFileError, "malformed"),
    "shape over its bytes": Case(PAPER, set_entry(shape=[1 << 40]), AdapterFileError, "byte range"),
    "empty tensor": Case(PAPER, set_entry(shape=[0, 8]), AdapterTensorError, "empty"),
    "many dimensions": Case(PAPER, set_entry(shape=[1] * 60), AdapterTensorError, "shape"),
    "dtype F64": Case(PAPER, set_tensor(DOWNS, torch.Tensor.double), AdapterTensorError, "F64"),
    "dtype I64": Case(
        PEFT, set_tensor("down.default.weight", torch.Tensor.long), AdapterTensorError, "I64"
    ),
    "dtype a list": Case(PAPER, set_entry(dtype=["F32"]), AdapterTensorError, "dtype"),
    "pickle named safetensors": Case(PAPER, replace_by(pickled), AdapterFileError, "safetensors"),
    "symlink": Case(PAPER, replace_by(link_out), AdapterFileError, "symbolic link"),
    "symlinked config": Case(PEFT, replace_by(link_out, config_file), AdapterFileError, "symbolic"),
    "FIFO": Case(PAPER, replace_by(os.mkfifo), AdapterFileError, "regular"),
    "config a FIFO": Case(PEFT, replace_by(os.mkfifo, config_file), AdapterFileError, "regular"),
    "directory as file": Case(PAPER, replace_by(os.mkdir), AdapterFileError, "regular"),
    "sparse terabyte": Case(PAPER, replace_by(sparse), AdapterFileError, "limit"),
    "config a sparse terabyte": Case(
        PAPER, replace_by(sparse, config_file), AdapterFileError, "limit"
    ),
    "tensor file missing": Case(
        PEFT, lambda a: tensor_file(a).unlink(), AdapterFileError, "no file"
    ),
    "paper pickle": Case(
        PAPER,
        lambda a: tensor_file(a).rename(a / "shadow_adapter.pt") and None,
        AdapterFileError,
        "save_pretrained",
    ),
    "peft pickle": Case(
        PEFT,
        lambda a: tensor_file(a).rename(a / "adapter_model.bin") and None,
        AdapterFileError,
        "save_pretrained",
    ),
    "no config": Case(PAPER, lambda a: config_file(a).unlink(), AdapterFileError, "neither"),
    "both formats": Case(
        PAPER,
        lambda a: (a / "adapter_config.json").write_text("{}") and None,
        AdapterConfigError,
        "both",
    ),
    "LFS pointer": Case(
        PAPER,
        write_bytes(
            lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        ),
        AdapterFileError,
        "safetensors",
    ),
    "gzip": Case(PEFT, write_bytes(gzip.compress), AdapterFileError, "safetensors"),
    "HTML": Case(
        PEFT, write_bytes(lambda _: b"<!DOCTYPE html><html>"), AdapterFileError, "safetens"
    ),
    "random bytes": Case(
        PAPER, write_bytes(lambda _: bytes(range(1, 256)) * 64), AdapterFileError, "safetensors"
    ),
    "no header": Case(PAPER, write_bytes(lambda _: bytes(8)), AdapterFileError, "safetensors"),
    "header of one byte": Case(
        PAPER, write_bytes(lambda _: (1).to_bytes(8, "little") + b"{"), AdapterFileError, "JSON"
    ),
    "header with garbage behind": Case(
        PAPER, set_header(lambda h: json.dumps(h) + " x"), AdapterFileError, "JSON"
    ),
    "header with NULs behind": Case(
        PAPER, set_header(lambda h: json.dumps(h) + "\0\0"), AdapterFileError, "JSON"
    ),
    "header with a BOM": Case(
        PAPER, set_header(lambda h: "\ufeff" + json.dumps(h)), AdapterFileError, "safetensors"
    ),
    "header cut inside": Case(
        PEFT, set_header(lambda h: json.dumps(h)[:-2]), AdapterFileError, "JSON"
    ),
    "header with NaN": Case(
        PEFT, set_header(lambda _: '{"a": NaN}'), AdapterFileError, "not a number"
    ),
    "metadata a list": Case(
        PAPER, set_header(lambda h: h | {"__metadata__": [1]}), AdapterFileError, "metadata"
    ),
    "metadata of 900 kB in keys": Case(
        PAPER,
        set_header(lambda h: h | {"__metadata__": {"x" * 900_000: [[]] * 10}}),
        AdapterFileError,
        "metadata",
    ),
    "offsets turned round": Case(PAPER, set_entry(data_offsets=[8, 4]), AdapterFileError, "range"),
    "offsets negative": Case(PAPER, set_entry(data_offsets=[-4, 0]), AdapterFileError, "malformed"),
    "offsets floats": Case(
        PAPER, set_entry(data_offsets=[0.0, 4.0]), AdapterFileError, "malformed"
    ),
    "offsets three": Case(PAPER, set_entry(data_offsets=[0, 4, 8]), AdapterFileError, "range"),
    "offsets behind the end": Case(
        PAPER,
        set_header(lambda _: {"a": TENSOR | {"shape": [1 << 30], "data_offsets": [0, 1 << 32]}}),
        AdapterFileError,
        "truncated",
    ),
    "offsets 2^63": Case(
        PAPER, set_entry(data_offsets=[1 << 63, (1 << 63) + 4]), AdapterFileError, "malformed"
    ),
    "gap in the middle": Case(
        PEFT,
        set_header(lambda _: {"a": TENSOR, "b": TENSOR | {"data_offsets": [8, 12]}}),
        AdapterFileError,
        "gaps",
    ),
    "all tensors at one place": Case(
        PEFT,
        set_header(lambda h: dict.fromkeys(h.keys() - {"__metadata__"}, TENSOR)),
        AdapterFileError,
        "overlap",
    ),
    "product of sizes over 64 bits": Case(
        PEFT, set_entry(shape=[1 << 40, 1 << 40]), AdapterFileError, "byte range"
    ),
    "product of sizes zero mod 2^64": Case(
        PEFT, set_entry(shape=[1 << 32, 1 << 32], data_offsets=[0, 0]), AdapterFileError, "range"
    ),
    "scalar": Case(PAPER, set_entry(shape=[]), AdapterTensorError, "shape"),
    "shape a string": Case(PAPER, set_entry(shape="1"), AdapterFileError, "malformed"),
    "entry with a field more": Case(PAPER, set_entry(code="x"), AdapterFileError, "malformed"),
    "dtype BOOL": Case(PEFT, set_entry(dtype="BOOL"), AdapterTensorError, "BOOL"),
    "dtype F8": Case(PEFT, set_entry(dtype="F8_E4M3"), AdapterTensorError, "F8_E4M3"),
    "dtype object": Case(PEFT, set_entry(dtype="O"), AdapterTensorError, "dtype"),
    "dtype of 100 kB": Case(PEFT, set_entry(dtype="F" * 100_000), AdapterTensorError, "dtype"),
    "config a directory": Case(
        PAPER, replace_by(os.mkdir, config_file), AdapterFileError, "regular"
    ),
    "config a link to /dev/zero": Case(
        PEFT, replace_by(lambda p: p.symlink_to("/dev/zero"), config_file), AdapterFileError, "link"
    ),
    "tensor file a link to itself": Case(
        PAPER, replace_by(lambda p: p.symlink_to(p.name)), AdapterFileError, "symbolic"
    ),
    "tensor file a link to a password": Case(
        PEFT, replace_by(lambda p: p.symlink_to("/etc/shadow")), AdapterFileError, "symbolic"
    ),
    "backbone config a FIFO": Case(
        EXPLICIT, replace_by(os.mkfifo, backbone_file), AdapterFileError, "regular"
    ),
    "backbone config a sparse terabyte": Case(
        EXPLICIT, replace_by(sparse, backbone_file), AdapterFileError, "limit"
    ),
    "backbone config a link": Case(
        PEFT_EXPLICIT, replace_by(link_out, backbone_file), AdapterFileError, "symbolic"
    ),
    "heads a link": Case(
        PAPER,
        lambda a: (a / "shadow_modules.safetensors").symlink_to("/etc/passwd") and None,
        AdapterFileError,
        "symbolic",
    ),
    "heads truncated": Case(
        PAPER,
        lambda a: (a / "shadow_modules.safetensors").write_bytes(b"x") and None,
        AdapterFileError,
        "truncated",
    ),
    "heads trained": Case(PAPER, trained_head, AdapterTensorError, "lm_head"),
}
