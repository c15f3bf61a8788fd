"""The oracle against torch's own modules: an independent reading of the same equations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from shadow_kernels.testing import PAPER_FLAGS, PEFT_FLAGS, make_boundary_case

D, R, G = 24, 4, 5


def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Linear:
    module = torch.nn.Linear(
        weight.shape[1], weight.shape[0], bias=bias is not None, dtype=torch.float64
    )
    module.weight.data = weight.double()
    if bias is not None:
        module.bias.data = bias.double()
    return module


@pytest.mark.parametrize("flags", [PAPER_FLAGS, PEFT_FLAGS])
@torch.no_grad()
def test_the_oracle_equals_modules_wired_by_hand(flags):
    slots = np.array([2, -1, 2, 2], np.int32)
    case = make_boundary_case(
        slots, num_adapter_slots=3, hidden_size=D, rank=R, gate_size=G, flags=[0, 0, flags]
    )
    own = {name: tensor[2] for name, tensor in case.weights._asdict().items()}
    is_peft = flags == PEFT_FLAGS

    def branch(index: int) -> torch.nn.Sequential:
        biases = (
            (own["update_in_bias"][index], own["update_out_bias"][index])
            if is_peft
            else (None, None)
        )
        activation = torch.nn.GELU() if is_peft else torch.nn.SiLU()
        return torch.nn.Sequential(
            linear(own["update_in"][index], biases[0]),
            activation,
            linear(own["update_out"][index].T, biases[1]),
        )

    rows = [0, 2, 3]
    h = case.hidden[rows].double() + case.residual[rows].double()
    s = case.state[rows].double()
    x = (
        h
        if is_peft
        else F.layer_norm(h, (D,), own["norm_weight"].double(), own["norm_bias"].double(), 1e-5)
    )
    s = s + torch.sigmoid(branch(1)(x)) * (branch(0)(x) - s)
    injection = torch.nn.Sequential(linear(own["down"], None), linear(own["up"].T, None))
    hidden = case.hidden[rows].double() + own["scale"].double() * injection(h - s)
    actual_hidden, actual_state = case.expected()
    torch.testing.assert_close(actual_hidden[rows], hidden, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(actual_state[rows], s, rtol=1e-12, atol=1e-12)
