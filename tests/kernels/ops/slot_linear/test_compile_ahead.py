"""What is compiled before serving is all that steps of any size run."""

import pytest
import torch

from shadow_kernels import StepSegments, compile_slot_linear, slot_linear
from shadow_kernels.testing import popularity_slots

pytestmark = pytest.mark.gpu
knobs = pytest.importorskip("triton").knobs
NUM_SLOTS = 5


@pytest.mark.parametrize("sizes", [(4096, 6144), (128, 4096), (4096, 512)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("num_chunks", [None, 1, 2])
def test_no_step_waits_for_the_compiler(sizes, has_bias, num_chunks, monkeypatch):
    num_inputs, num_outputs = sizes
    max_tokens = 5000
    segments = StepSegments(max_tokens, NUM_SLOTS, "cuda")
    weight = torch.zeros(3, num_outputs, num_inputs, dtype=torch.bfloat16, device="cuda")
    bias = weight[:, :, 0].contiguous() if has_bias else None
    extents = torch.full((3, 4, 2), 100, dtype=torch.int32, device="cuda")[:, 1]
    options = {} if num_chunks is None else {"extents": extents, "num_chunks": num_chunks}
    compile_slot_linear(weight, bias, segments.grouping, 1, max_tokens, **options)
    compiled = []
    monkeypatch.setattr(
        knobs.runtime, "jit_post_compile_hook", lambda **event: compiled.append(event["repr"])
    )
    for num_tokens in (*range(1, 100), 512, 513, 1000, 1024, 4095, 4096, 5000):
        segments.fill(popularity_slots("uniform", num_tokens, NUM_SLOTS, seed=1))
        x = torch.zeros(num_tokens, num_inputs, dtype=torch.bfloat16, device="cuda")
        slot_linear(x, weight, bias, segments.grouping, 1, **options)
    torch.cuda.synchronize()
    assert not compiled


def test_the_hook_sees_a_compilation(monkeypatch):
    compiled = []
    monkeypatch.setattr(
        knobs.runtime, "jit_post_compile_hook", lambda **event: compiled.append(event["repr"])
    )
    segments = StepSegments(8, NUM_SLOTS, "cuda")
    segments.fill(popularity_slots("uniform", 8, NUM_SLOTS, seed=1))
    x = torch.zeros(8, 37, dtype=torch.float16, device="cuda")
    slot_linear(
        x, torch.zeros(5, 41, 37, dtype=torch.float16, device="cuda"), None, segments.grouping
    )
    assert compiled
