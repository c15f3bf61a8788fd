"""Which tensors a backbone has in its checkpoint, of what shape, and which canonical tensors they become.

Runs in: API process | GPU worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from shadow_runtime.types import BackboneSpec


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One checkpoint tensor and what becomes of it.

    Attributes:
        key: its name in the checkpoint.
        shape: the only shape that is accepted.
        targets: canonical tensors that it is cut into along its (transposed) first dimension; none when it
            must be there but is not used.
        transpose: stored as (in, out).
    """

    key: str
    shape: tuple[int, ...]
    targets: tuple[str, ...]
    transpose: bool = False

    def apply(self, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the canonical tensors made from `tensor`, contiguous."""
        if not self.targets:
            return {}
        stored = tensor.T if self.transpose else tensor
        parts = stored.chunk(len(self.targets))
        return {name: part.contiguous() for name, part in zip(self.targets, parts, strict=True)}


def stored_tensors(
    rules: Iterable[TensorRule], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the checkpoint's tensors that `rules` make canonical ones of: the inverse of `TensorRule.apply`.

    Args:
        rules: of one backbone.
        tensors: canonical ones. What a rule does not use is written as zeros.
    """
    made = {}
    for rule in rules:
        parts = [tensors[name] for name in rule.targets] or [torch.zeros(rule.shape)]
        joined = torch.cat(parts) if len(parts) > 1 else parts[0]
        made[rule.key] = (joined.T if rule.transpose else joined).contiguous()
    return made


def backbone_rules(
    spec: BackboneSpec, prefix: str, *, unused_vocab_size: int = 0
) -> list[TensorRule]:
    """Return the rules of a backbone without its projection.

    Args:
        spec: its geometry.
        prefix: of the backbone's keys in the checkpoint, dot included.
        unused_vocab_size: rows of an embedding that the checkpoint holds although the backbone is fed the
            base's embeddings, 0 for none.
    """
    make = _gpt2_rules if spec.family == "gpt2" else _llama_rules
    rules = list(make(spec, prefix))
    rows: int = unused_vocab_size
    targets: tuple[str, ...] = ()
    if spec.vocab_size:
        rows, targets = spec.vocab_size, ("backbone.embed.weight",)
    if rows:
        rules.append(TensorRule(prefix + embed_key(spec.family), (rows, spec.hidden_size), targets))
    return rules


def projection_rules(spec: BackboneSpec, key: str, base_hidden_size: int) -> list[TensorRule]:
    """Return the rule of the projection to the base's width, when the spec has one."""
    if not spec.has_projection:
        return []
    return [TensorRule(key, (base_hidden_size, spec.hidden_size), ("backbone.projection.weight",))]


def embed_key(family: str) -> str:
    """Return the key of a backbone's own embedding, without prefix."""
    return "wte.weight" if family == "gpt2" else "embed_tokens.weight"


def _llama_rules(spec: BackboneSpec, prefix: str) -> Iterator[TensorRule]:
    width = (spec.hidden_size,)
    for layer in range(spec.num_layers):
        source, target = f"{prefix}layers.{layer}.", f"backbone.layers.{layer}."
        for name, norm in _llama_norms(spec):
            yield TensorRule(f"{source}{name}.weight", width, (f"{target}{norm}.weight",))
        for name, linear, out_size, in_size, has_bias in _llama_linears(spec):
            yield TensorRule(
                f"{source}{name}.weight", (out_size, in_size), (f"{target}{linear}.weight",)
            )
            if has_bias:
                yield TensorRule(f"{source}{name}.bias", (out_size,), (f"{target}{linear}.bias",))
        if spec.qk_norm:
            for norm in ("q_norm", "k_norm"):
                yield TensorRule(
                    f"{source}self_attn.{norm}.weight",
                    (spec.head_dim,),
                    (f"{target}{norm}.weight",),
                )
    yield TensorRule(f"{prefix}norm.weight", width, ("backbone.norm.weight",))


def _llama_norms(spec: BackboneSpec) -> list[tuple[str, str]]:
    if not spec.sandwich_norm:
        return [("input_layernorm", "input_norm"), ("post_attention_layernorm", "mlp_norm")]
    return [
        ("input_layernorm", "input_norm"),
        ("post_attention_layernorm", "attn_out_norm"),
        ("pre_feedforward_layernorm", "mlp_norm"),
        ("post_feedforward_layernorm", "mlp_out_norm"),
    ]


def _llama_linears(spec: BackboneSpec) -> list[tuple[str, str, int, int, bool]]:
    width, inner = spec.hidden_size, spec.intermediate_size
    q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    return [
        ("self_attn.q_proj", "q", q_size, width, spec.qkv_bias),
        ("self_attn.k_proj", "k", kv_size, width, spec.qkv_bias),
        ("self_attn.v_proj", "v", kv_size, width, spec.qkv_bias),
        ("self_attn.o_proj", "o", width, q_size, spec.o_bias),
        ("mlp.gate_proj", "gate", inner, width, spec.mlp_bias),
        ("mlp.up_proj", "up", inner, width, spec.mlp_bias),
        ("mlp.down_proj", "down", width, inner, spec.mlp_bias),
    ]


def _gpt2_rules(spec: BackboneSpec, prefix: str) -> Iterator[TensorRule]:
    width, inner = spec.hidden_size, spec.intermediate_size
    linears = [
        ("attn.c_attn", ("q", "k", "v"), 3 * width, width),
        ("attn.c_proj", ("o",), width, width),
        ("mlp.c_fc", ("up",), inner, width),
        ("mlp.c_proj", ("down",), width, inner),
    ]
    for layer in range(spec.num_layers):
        source, target = f"{prefix}h.{layer}.", f"backbone.layers.{layer}."
        for name, norm in (("ln_1", "input_norm"), ("ln_2", "mlp_norm")):
            yield from _layer_norm_rules(source + name, target + norm, width)
        for name, parts, out_size, in_size in linears:
            weights = tuple(f"{target}{part}.weight" for part in parts)
            yield TensorRule(f"{source}{name}.weight", (in_size, out_size), weights, transpose=True)
            biases = tuple(f"{target}{part}.bias" for part in parts)
            yield TensorRule(f"{source}{name}.bias", (out_size,), biases)
    yield from _layer_norm_rules(f"{prefix}ln_f", "backbone.norm", width)
    positions = (spec.learned_positions, width)
    yield TensorRule(f"{prefix}wpe.weight", positions, ("backbone.position_embed.weight",))


def _layer_norm_rules(source: str, target: str, width: int) -> Iterator[TensorRule]:
    for part in ("weight", "bias"):
        yield TensorRule(f"{source}.{part}", (width,), (f"{target}.{part}",))
