"""Which base model a database of adapters belongs to.

Runs in: API process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from shadow_runtime.types import BaseGeometry

# What decides the arithmetic. The rest of a config changes without the model changing: its path, the release of
# transformers that wrote it, the dtype that it is served in, defaults that a release adds. A server that did not open
# its registry after an upgrade would be worse than a field missing here: adapters are checked against the base anyhow.
_FIELDS = frozenset(
    {
        "activation_function",
        "attention_bias",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "head_dim",
        "hidden_act",
        "hidden_activation",
        "hidden_size",
        "intermediate_size",
        "layer_norm_epsilon",
        "layer_types",
        "max_position_embeddings",
        "mlp_bias",
        "model_type",
        "n_embd",
        "n_head",
        "n_inner",
        "n_layer",
        "n_positions",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "query_pre_attn_scalar",
        "rms_norm_eps",
        "rope_parameters",
        "scale_attn_weights",
        "sliding_window",
        "tie_word_embeddings",
        "vocab_size",
    }
)


def base_fingerprint(geometry: BaseGeometry) -> str:
    """Return `sha256:<64 hex digits>` over what decides the base's arithmetic.

    Two models of one shape (a base and its fine-tuned form, say) have the same fingerprint: it tells shapes apart,
    not weights.
    """
    content = {
        "family": geometry.family,
        "hidden_size": geometry.hidden_size,
        "num_layers": geometry.num_layers,
        "vocab_size": geometry.vocab_size,
        "config": _present({k: v for k, v in geometry.hf_config.items() if k in _FIELDS}),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is None, at every level: an absent field and one without a value mean the same."""
    return {
        key: _present(value) if isinstance(value, Mapping) else value
        for key, value in fields.items()
        if value is not None
    }
