"""The identity of an adapter: what changes it, what does not, and that it never drifts."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adapter_damage import Damage, set_fields, set_tensor
from shadow_runtime.artifact import load_adapter
from shadow_runtime.artifact.digest import compute_digest
from shadow_runtime.types import BaseGeometry

GOLDEN = "sha256:f15490d1a7e90b3e3a6eaf6d2437802b7521ae7aefe1db18f5dd11a658660fe4"


def tensors() -> dict[str, torch.Tensor]:
    """Return one small tensor of each dtype."""
    values = torch.tensor([[0.5, -1.25, 3.0], [0.0, 2.0, -8.0]])
    dtypes = {"b": torch.float16, "a": torch.float32, "c": torch.bfloat16}
    return {name: values.to(dtype) for name, dtype in dtypes.items()}


CONFIG = {"scale": 0.1, "injects": (False, True), "backbone": {"rope": None, "heads": 4}}


def test_golden_value() -> None:
    assert compute_digest(CONFIG, tensors()) == GOLDEN


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
