"""What tells base models apart, and what does not."""

import copy
import re

import pytest

from shadow_runtime.catalog import base_fingerprint
from shadow_runtime.types import BaseGeometry

CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "rms_norm_eps": 1e-6,
    "sliding_window": None,
    "layer_types": ["full_attention", "full_attention"],
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "transformers_version": "5.19.0",
    "_name_or_path": "/models/a",
    "dtype": "float32",
}


def fingerprint(family="qwen3", hidden_size=64, num_layers=2, vocab_size=100, **changes):
    config = copy.deepcopy(CONFIG) | changes
    return base_fingerprint(BaseGeometry(family, hidden_size, num_layers, vocab_size, config))


def test_fingerprint_is_a_digest():
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", fingerprint())


def test_fingerprint_does_not_change_between_releases():
    # A constant on purpose: with another one, every database of an earlier release would be refused.
    assert (
        fingerprint() == "sha256:a4dd41046a21ac69fdcb4251bc0db3551b0bf8389757aebfd1053c80c005b6c2"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"transformers_version": "6.0.0"},
        {"_name_or_path": "/models/b"},
        {"dtype": "bfloat16"},
        {"a_field_of_a_later_release": 1},
        {"use_cache": False},
        {"head_dim": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "factor": None}},
    ],
    ids=str,
)
def test_same_model_has_the_same_fingerprint(changes):
    assert fingerprint(**changes) == fingerprint()


@pytest.mark.parametrize(
    "changes",
    [
        {"family": "llama"},
        {"hidden_size": 128},
        {"num_layers": 3},
        {"vocab_size": 101},
        {"intermediate_size": 256},
        {"num_attention_heads": 8},
        {"rms_norm_eps": 1e-5},
        {"sliding_window": 128},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
        {"tie_word_embeddings": True},
    ],
    ids=str,
)
def test_another_model_has_another_fingerprint(changes):
    assert fingerprint(**changes) != fingerprint()


def test_order_of_fields_does_not_matter():
    backwards = dict(reversed(CONFIG.items()))

    assert base_fingerprint(BaseGeometry("qwen3", 64, 2, 100, backwards)) == fingerprint()
