"""Weight files that are well-formed and hold the wrong tensors, or poisoned ones."""

from __future__ import annotations

import torch

from adapter_damage import (
    poison,
    set_tensor,
    set_tensors,
)
from malicious_case import (
    DOWNS,
    EXPLICIT,
    PAPER,
    PEFT,
    Case,
    add,
    duplicate,
    remove,
    rename,
)
from shadow_runtime.errors import (
    AdapterMismatchError,
    AdapterTensorError,
)

TENSORS: dict[str, Case] = {
    "unknown key": Case(PAPER, add("shadow_model.extra"), AdapterTensorError, "unknown"),
    "unknown peft key": Case(PEFT, add("base_model.model.extra"), AdapterTensorError, "unknown"),
    "missing key": Case(PAPER, remove("hidden_norm.bias"), AdapterTensorError, "lacks"),
    "no keys": Case(PAPER, set_tensors(lambda t: t.clear()), AdapterTensorError, "lacks"),
    "no layers": Case(
        PEFT, rename(".layers.", ".blocks."), AdapterTensorError, "no tensors for any layer"
    ),
    "a gap in the layers": Case(
        PEFT,
        remove("model.layers.1."),
        AdapterTensorError,
        "contiguous",
    ),
    "layer number of 100,000 digits": Case(
        PEFT,
        rename("model.layers.0.", "model.layers." + "0" * 10_000 + "."),
        AdapterMismatchError,
        "wraps layers 1 to 3",
    ),
    "key there twice": Case(PAPER, set_tensors(duplicate), AdapterTensorError, "twice"),
    "trained head": Case(PEFT, add("base_model.model.lm_head.weight"), AdapterTensorError, "head"),
    "classifier": Case(
        PEFT, add("base_model.shadow_head.default.weight"), AdapterTensorError, "head"
    ),
    "wrong shape": Case(
        PAPER, set_tensor("mlp.up_proj.weight", lambda t: t[:-1]), AdapterTensorError, "expected"
    ),
    "wrong rank": Case(PAPER, set_tensor(DOWNS, lambda t: t[0]), AdapterTensorError, "dimensions"),
    "projection missing": Case(
        EXPLICIT,
        remove("shadow_hidden_projection"),
        AdapterMismatchError,
        "tied",
    ),
    "key with a NUL": Case(PAPER, add("shadow_model.\0"), AdapterTensorError, r"unknown.*x00"),
    "key of 100,000 characters": Case(PAPER, add("x" * 100_000), AdapterTensorError, "unknown"),
    "key a path": Case(PEFT, add("../../etc/passwd"), AdapterTensorError, "unknown"),
    "key that looks alike": Case(
        PAPER, rename(DOWNS, "injection_d\u043ewns"), AdapterTensorError, "lacks"
    ),
    "key of a method": Case(PEFT, add("base_model.__class__"), AdapterTensorError, "unknown"),
    "base of another width": Case(
        PAPER, set_tensor(DOWNS, lambda _: torch.zeros(3, 96, 8)), AdapterMismatchError, "size 96"
    ),
    "base of other layers": Case(
        PAPER, set_tensor(DOWNS, lambda _: torch.zeros(5, 64, 8)), AdapterMismatchError, "6 layers"
    ),
    "layer 99,999": Case(
        PEFT, rename("model.layers.3.", "model.layers.99999."), AdapterMismatchError, "99999"
    ),
    "layer in other digits": Case(
        PEFT, rename("model.layers.3.", "model.layers.\u0663."), AdapterMismatchError, "0 to 2"
    ),
    "turned matrix": Case(
        PEFT, set_tensor("shadow_up.default.weight", lambda t: t.T), AdapterTensorError, "expected"
    ),
    "matrix of one row more": Case(
        PEFT,
        set_tensor("gate.default.2.weight", lambda t: torch.cat([t, t[:1]])),
        AdapterTensorError,
        "expected",
    ),
}

POISONED: dict[str, Case] = {
    f"{value} in {name}": Case(kind, poison(name, value), AdapterTensorError, "NaN or Inf")
    for kind, name, value in [
        (PAPER, DOWNS, float("nan")),
        (PAPER, "update_transforms.2.3.weight", float("inf")),
        (PAPER, "hidden_norm.bias", float("-inf")),
        (PEFT, "shadow_update_gate.default.2.bias", float("nan")),
        (EXPLICIT, "embed_tokens.weight", float("inf")),
        (EXPLICIT, "shadow_hidden_projection.weight", float("nan")),
    ]
}
