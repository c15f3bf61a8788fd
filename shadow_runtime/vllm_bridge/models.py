"""The in-tree model classes with a shadow path, one generic mechanism for all families.

Runs in: GPU worker; vLLM also imports it in a subprocess to inspect the classes.

`shadowize` subclasses an in-tree `...ForCausalLM`. After the stock constructor it exchanges the *class* of each decoder
layer for a subclass whose forward crosses the boundary first; parameter names, weight loading, quantisation and vLLM's
compiled model class stay untouched. Without `additional_config["shadow"]` the subclasses behave like stock vLLM.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch
from torch import nn
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.models.interfaces import SupportsLoRA
from vllm.sequence import IntermediateTensors

from shadow_kernels import BoundaryWeights
from shadow_runtime.config import ShadowConfig
from shadow_runtime.vllm_bridge.architecture import ARCHITECTURES, Architecture
from shadow_runtime.vllm_bridge.decode_attention import replace_attention
from shadow_runtime.vllm_bridge.decode_kernels import has_own_norm, replace_kernels
from shadow_runtime.vllm_bridge.executor import ShadowExecutor

_STATE_KEY = "shadow_state"


def find_shadow_config(vllm_config: VllmConfig) -> ShadowConfig | None:
    """Return the runtime's settings of an engine, or None when it runs without the shadow path."""
    additional = vllm_config.additional_config
    data = additional.get("shadow") if isinstance(additional, dict) else None
    return None if data is None else ShadowConfig.from_dict(data)


class _CrossingLayer:
    """Mixin in front of an in-tree decoder layer's class; see `_exchange_class`."""

    _shadow: tuple[ShadowExecutor, BoundaryWeights]

    def _cross(self, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        executor, weights = self._shadow
        executor.cross(weights, hidden, residual)


class _PendingLayer(_CrossingLayer):
    input_layernorm: nn.Module

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: Any, **kwargs: Any
    ) -> Any:
        if residual is None or not isinstance(self.input_layernorm, CrossingNorm):
            self._cross(hidden_states, residual)
        return super().forward(positions, hidden_states, residual, **kwargs)  # type: ignore[misc]


class _WholeLayer(_CrossingLayer):
    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self._cross(hidden_states, None)
        return super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]


class CrossingNorm(RMSNorm):
    """A layer's first norm that crosses the boundary itself, in one operator, wherever it has a residual to add."""

    _shadow: tuple[ShadowExecutor, BoundaryWeights]

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        """Return the norm of x, or the boundary's (norm, residual), which are the arguments' own memory."""
        if residual is None:
            return super().forward(x)
        executor, weights = self._shadow
        executor.cross_into_norm(weights, x, residual, self.weight.data, self.variance_epsilon)
        return x, residual


def gives_norm_away(layer: nn.Module, vllm_config: VllmConfig) -> bool:
    """Whether the boundary in front of a layer may do the layer's first norm as well.

    Only in engines whose compiler makes that norm. Elsewhere it is a kernel of vLLM's own, and rows without an adapter
    have the bits of stock vLLM as long as it runs.
    """
    return has_own_norm(getattr(layer, "input_layernorm", None), vllm_config)


def _exchange_class(layer: nn.Module, stream: str, executor: ShadowExecutor, index: int) -> None:
    mixin = _PendingLayer if stream == "pending" else _WholeLayer
    name = f"Shadow{type(layer).__name__}"
    crossing = globals().get(name)
    if crossing is None:
        # Importable under its name, so that vLLM can pickle the compiled graph that mentions it.
        crossing = type(name, (mixin, type(layer)), {"__module__": __name__, "__qualname__": name})
        globals()[name] = crossing
    layer.__class__ = crossing
    # A tuple, so that torch does not register the executor as a submodule of every layer.
    layer._shadow = (executor, executor.slice_of(index))  # type: ignore[assignment]


class _ShadowCausalLM:
    """Mixin in front of an in-tree causal-LM class; see `shadowize`."""

    _architecture: Architecture
    make_empty_intermediate_tensors: Any

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.shadow: ShadowExecutor | None = None
        config = find_shadow_config(vllm_config)
        if config is not None:
            self._attach(vllm_config, config)

    def _attach(self, vllm_config: VllmConfig, config: ShadowConfig) -> None:
        inner = getattr(self, self._architecture.inner)
        span = (inner.start_layer, inner.end_layer)
        with set_model_tag("shadow_backbone"):
            executor = ShadowExecutor(
                vllm_config,
                config,
                span,
                vllm_config.model_config.get_hidden_size(),
                self.embed_input_ids,  # type: ignore[attr-defined]
            )
        self.shadow = executor
        replace_attention(executor, vllm_config)
        layers = getattr(inner, self._architecture.layers)
        for index in range(*span):
            layer = layers[index]
            _exchange_class(layer, self._architecture.stream, executor, index)
            if gives_norm_away(layer, vllm_config):
                layer.input_layernorm.__class__ = CrossingNorm
                layer.input_layernorm._shadow = layer._shadow
            replace_kernels(layer, vllm_config)
            replace_attention(layer, vllm_config)
        make_stock = self.make_empty_intermediate_tensors
        self.make_empty_intermediate_tensors = _with_state(make_stock, executor)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor | IntermediateTensors:
        """Seed the shadow state, then run the in-tree forward; arguments and result are the in-tree class's."""
        executor = self.shadow
        if executor is not None:
            if intermediate_tensors is not None and not get_pp_group().is_first_rank:
                executor.receive(intermediate_tensors.tensors[_STATE_KEY])
            elif input_ids is not None:
                executor.seed(input_ids, positions)
        out = super().forward(  # type: ignore[misc]
            input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs
        )
        if executor is not None and isinstance(out, IntermediateTensors):
            out.tensors[_STATE_KEY] = executor.send(positions.shape[-1])
        return out


def _with_state(make_stock: Any, executor: ShadowExecutor) -> Any:
    def make(batch_size: int, dtype: torch.dtype, device: torch.device) -> IntermediateTensors:
        tensors = make_stock(batch_size, dtype, device)
        tensors.tensors[_STATE_KEY] = torch.zeros(
            batch_size, executor.hidden_size, dtype=dtype, device=device
        )
        return tensors

    return make


def shadowize(name: str) -> type:
    """Return the in-tree causal-LM class `name` with a shadow path."""
    architecture = ARCHITECTURES[name]
    stock = getattr(
        importlib.import_module(f"vllm.model_executor.models.{architecture.module}"), name
    )
    # vLLM offers its adapter interface only to classes that declare it; GPT-2 in tree does not.
    bases: tuple[type, ...] = (_ShadowCausalLM, stock)
    if SupportsLoRA not in stock.__mro__:
        bases = (*bases, SupportsLoRA)
    own_name = f"Shadow{name}"
    return type(
        own_name,
        bases,
        {"__module__": __name__, "__qualname__": own_name, "_architecture": architecture},
    )


def __getattr__(name: str) -> type:
    """Build `Shadow<Architecture>` on first use: a process imports only the family that it serves."""
    stock = name.removeprefix("Shadow")
    if stock == name or stock not in ARCHITECTURES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    cls = shadowize(stock)
    setattr(sys.modules[__name__], name, cls)
    return cls
