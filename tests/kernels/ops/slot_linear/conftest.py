"""What the tests of `slot_linear` share."""

import pytest
import torch


@pytest.fixture
def poisoned_memory(monkeypatch):
    """Fill fresh memory with NaN: a row that nobody writes shows."""
    stock = torch.Tensor.new_empty

    def new_empty(self, *size, **options):
        fresh = stock(self, *size, **options)
        return fresh.fill_(torch.nan) if fresh.is_floating_point() else fresh

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
