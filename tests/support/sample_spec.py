"""A backbone's geometry for tests that need one and do not care which.

Imports no torch: crash tests start hundreds of processes with it.
"""

from shadow_runtime.types import BackboneSpec

SAMPLE_SPEC = BackboneSpec(
    family="qwen3",
    num_layers=2,
    hidden_size=64,
    intermediate_size=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    norm="rms",
    norm_eps=1e-6,
    qk_norm=True,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    mlp="glu",
    activation="silu",
    sandwich_norm=False,
    rope=('{"rope_theta":10000.0,"rope_type":"default"}',) * 2,
    windows=(None, 128),
    attention_scale=0.25,
    logit_softcap=None,
    max_position_embeddings=512,
    learned_positions=0,
    vocab_size=0,
    embed_scale=1.0,
    has_projection=True,
)
