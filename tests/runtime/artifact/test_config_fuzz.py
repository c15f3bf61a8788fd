"""Any JSON value in any config field: the adapter loads or is refused with a documented error."""

from __future__ import annotations

import contextlib
import json
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference_adapters import copy_adapter
from shadow_runtime.artifact import load_adapter
from shadow_runtime.errors import AdapterError
from shadow_runtime.types import BaseGeometry

MAX_BYTES = 8 << 20

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, 2, 3, 4, 8, 64, 10**9, 2**31, 2**63, -1]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(
        ["", "mirror", "llama", "gpt2", "silu", "default", "../..", "\ud800", "(a*)*b"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.dictionaries(
            st.sampled_from(["rope_type", "rope_theta", "factor", "full_attention", "model_type"]),
            children,
            max_size=3,
        ),
    ),
    max_leaves=6,
)
FILES = [
    ("paper_implicit", "shadow_config.json"),
    ("peft_mirror", "adapter_config.json"),
    ("paper_explicit", "config.json"),
    ("peft_explicit", "config.json"),
]


@pytest.mark.parametrize(("kind", "name"), FILES)
@settings(
    max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_value_in_any_field(
    kind: str, name: str, data: st.DataObject, originals: Path, geometry: BaseGeometry
) -> None:
    fields: dict[str, Any] = json.loads((originals / kind / name).read_text())
    keys = st.sampled_from([*sorted(fields), "rope_scaling", "rope_theta", "head_dim"])
    fields |= data.draw(st.dictionaries(keys, VALUES, min_size=1, max_size=3))
    with tempfile.TemporaryDirectory() as directory:
        adapter = copy_adapter(originals / kind, Path(directory) / "adapter")
        (adapter / name).write_text(json.dumps(fields))
        tracemalloc.start()
        with contextlib.suppress(AdapterError):
            load_adapter(adapter, geometry)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MAX_BYTES
