"""The same launches eagerly and from a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def eager_and_replayed(
    tensors: Sequence[torch.Tensor], launch: Callable[..., None]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return copies of `tensors` after `launch(*copies)`, and others after a graph captured from it was replayed once.

    Args:
        tensors: CUDA tensors that `launch` mutates.
        launch: launches kernels; what it does has to be capturable.
    """
    eager, replayed = ([tensor.clone() for tensor in tensors] for _ in range(2))
    launch(*eager)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch(*replayed)
    graph.replay()
    return eager, replayed
