"""The identity of an adapter: what changes it, what does not, and that it never drifts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from adapter_damage import Damage, set_fields, set_tensor
from shadow_runtime.artifact import load_adapter
from shadow_runtime.artifact.digest import compute_digest
from shadow_runtime.types import BaseGeometry

# Changed with version 2 of the hashed form, in which tensors enter as the hashes of their pieces.
GOLDEN = "sha256:cd3f9c4fa13acbd4f0ea0cd621d3ffef34ef7750f6dcb5e404300068cab94410"


def tensors() -> dict[str, torch.Tensor]:
    """Return one small tensor of each dtype."""
    values = torch.tensor([[0.5, -1.25, 3.0], [0.0, 2.0, -8.0]])
    dtypes = {"b": torch.float16, "a": torch.float32, "c": torch.bfloat16}
    return {name: values.to(dtype) for name, dtype in dtypes.items()}


CONFIG = {"scale": 0.1, "injects": (False, True), "backbone": {"rope": None, "heads": 4}}


def test_golden_value() -> None:
    assert compute_digest(CONFIG, tensors()) == GOLDEN


def by_hand(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    """Return the digest as its documentation says, written a second time."""

    def line(value: Any) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    hashed = b"shadow adapter v2\n" + line(config)
    for name, tensor in sorted(tensors.items()):
        hashed += line([name, names[tensor.dtype], list(tensor.shape)])
        data = bytes(tensor.contiguous().view(torch.uint8).flatten().tolist())
        for begin in range(0, len(data), 4 * 1024 * 1024):
            hashed += hashlib.sha256(data[begin : begin + 4 * 1024 * 1024]).digest()
    return "sha256:" + hashlib.sha256(hashed).hexdigest()


@pytest.mark.parametrize("num_threads", [0, 1, 3])
@pytest.mark.parametrize("num_elements", [1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_large_tensors_are_hashed_in_pieces_by_any_number_of_threads(
    num_elements: int, num_threads: int
) -> None:
    generator = torch.Generator().manual_seed(num_elements)
    large = {"large": torch.randn(num_elements, generator=generator)}
    with ThreadPoolExecutor(max(num_threads, 1)) as threads:
        digest = compute_digest(CONFIG, tensors() | large, threads if num_threads else None)
    assert digest == by_hand(CONFIG, tensors() | large)


def test_reading_in_threads_changes_nothing(originals: Path, geometry: BaseGeometry) -> None:
    alone = load_adapter(originals / "paper_implicit", geometry)
    with ThreadPoolExecutor(3) as threads:
        together = load_adapter(originals / "paper_implicit", geometry, threads=threads)
    assert together.manifest == alone.manifest
    assert together.tensors.keys() == alone.tensors.keys()
    assert all(torch.equal(together.tensors[k], v) for k, v in alone.tensors.items())


def test_order_of_keys_does_not_matter() -> None:
    turned = dict(reversed(tensors().items()))
    assert compute_digest(dict(reversed(CONFIG.items())), turned) == GOLDEN


@pytest.mark.parametrize(
    "change",
    [
        {"b": tensors()["b"].float()},
        {"b": tensors()["b"].view(3, 2)},
        {"a": tensors()["a"] + torch.tensor(1e-6)},
        {"d": torch.zeros(1)},
        {"a": torch.tensor([[0.5, -1.25, 3.0], [-0.0, 2.0, -8.0]])},
    ],
    ids=["dtype", "shape", "value", "another tensor", "sign of zero"],
)
def test_every_bit_counts(change: dict[str, torch.Tensor]) -> None:
    assert compute_digest(CONFIG, tensors() | change) != GOLDEN


def test_config_counts() -> None:
    assert compute_digest(CONFIG | {"scale": 0.2}, tensors()) != GOLDEN


def test_another_process_agrees(originals: Path, geometry: BaseGeometry) -> None:
    script = (
        "import json, sys; from pathlib import Path\n"
        "from shadow_runtime.artifact import load_adapter\n"
        "from shadow_runtime.types import BaseGeometry\n"
        "base = BaseGeometry(**json.loads(sys.argv[2]))\n"
        "sys.stdout.write(load_adapter(Path(sys.argv[1]), base).manifest.digest)"
    )
    base = json.dumps(dataclasses.asdict(geometry))
    command = [sys.executable, "-O", "-c", script, str(originals / "peft_mirror"), base]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    assert done.stdout == load_adapter(originals / "peft_mirror", geometry).manifest.digest


@pytest.mark.parametrize(
    ("damage", "is_same"),
    [
        (set_fields(shadow_dropout=0.5, peft_version="0.30.0", base_model_name_or_path="x"), True),
        (set_fields(shadow_alpha=1), True),
        (set_fields(shadow_alpha=1.0000001), False),
        (set_tensor("layers.0.shadow_down.default.weight", lambda t: t + 1e-3), False),
        # The update after the last layer reaches no output.
        (set_tensor("layers.3.shadow_update_gate.default.2.bias", lambda t: t + 1.0), True),
    ],
    ids=["training fields", "integer alpha", "alpha", "weights", "dead update"],
)
def test_identity_follows_the_maths(
    damage: Damage,
    is_same: bool,
    copy: Callable[[str], Path],
    originals: Path,
    geometry: BaseGeometry,
) -> None:
    adapter = copy("peft_mirror")
    damage(adapter)
    expected = load_adapter(originals / "peft_mirror", geometry).manifest.digest
    assert (load_adapter(adapter, geometry).manifest.digest == expected) is is_same
