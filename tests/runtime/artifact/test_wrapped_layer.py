"""Layer selection, compared with peft's own matching of module names."""

from __future__ import annotations

from typing import Any

import pytest
from peft import ShadowConfig
from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

from shadow_runtime.artifact.field import ConfigFields
from shadow_runtime.artifact.wrapped_layer import wrapped_layers

STACK, NUM_LAYERS = "model.layers", 12
ALL = [f"{STACK}.{layer}" for layer in range(NUM_LAYERS)]

SELECTIONS: list[dict[str, Any]] = [
    {"target_modules": ALL[2:5]},
    {"target_modules": ["layers.3", "4"]},
    {"target_modules": ["1"]},
    {"target_modules": r".*\.layers\.\d+$"},
    {"target_modules": r"model\.layers\.[2-5]"},
    {"target_modules": r"(?:model\.)?layers\.(1|2)"},
    {"target_modules": r"layers\.1"},
    {"target_modules": ALL[1:6], "exclude_modules": ["3", "layers.4"]},
    {"target_modules": ALL, "exclude_modules": r".*1"},
    {"target_modules": ALL, "layers_to_transform": [1, 2]},
    {"target_modules": ["layers.1", "layers.2"], "layers_to_transform": [1, 2]},
    {"target_modules": ["2"], "layers_to_transform": 2, "layers_pattern": "layers"},
    {"target_modules": ["3"], "layers_to_transform": []},
]


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
def test_same_layers_as_peft(selection: dict[str, Any]) -> None:
    config = ShadowConfig(**selection)
    found = {name: check_target_module_exists(config, name) for name in ALL}
    expected = {
        index
        for index, match in enumerate(found.values())
        if match and not isinstance(match, _ExcludedModule)
    }
    fields = ConfigFields(selection, "adapter_config.json")
    assert wrapped_layers(fields, STACK, NUM_LAYERS) == expected


def test_no_targets_means_every_layer() -> None:
    fields = ConfigFields({"target_modules": None}, "adapter_config.json")
    assert wrapped_layers(fields, STACK, NUM_LAYERS) == frozenset(range(NUM_LAYERS))
