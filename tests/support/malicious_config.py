"""Hostile configs of the adapter and of its explicit backbone."""

from __future__ import annotations

from adapter_damage import (
    set_backbone,
    set_fields,
    write_config,
)
from malicious_case import (
    ALPHA,
    DEEP,
    EXPLICIT,
    PAPER,
    PEFT,
    PEFT_EXPLICIT,
    Case,
    backbone_file,
)
from shadow_runtime.errors import (
    AdapterConfigError,
    AdapterFileError,
    AdapterLimitError,
    AdapterMismatchError,
    AdapterTensorError,
)

CONFIGS: dict[str, Case] = {
    "config not JSON": Case(PAPER, write_config("{"), AdapterConfigError, "malformed"),
    "config a list": Case(PAPER, write_config("[]"), AdapterConfigError, "object"),
    "config not UTF-8": Case(
        PAPER, write_config(b'{"a": "\xff"}'), AdapterConfigError, "malformed"
    ),
    "config repeats a key": Case(
        PAPER, write_config('{"alpha": 1, "alpha": 2}'), AdapterConfigError, "twice"
    ),
    "config deep": Case(PAPER, write_config('{"a":' + DEEP + "}"), AdapterConfigError, "nests"),
    "config 2 MiB": Case(
        PAPER, write_config("{" + " " * (2 << 20) + "}"), AdapterFileError, "limit"
    ),
    "alpha a boolean": Case(PAPER, set_fields(alpha=True), AdapterConfigError, "'alpha'"),
    "alpha a string": Case(PAPER, set_fields(alpha="1.0"), AdapterConfigError, "'alpha'"),
    "alpha null": Case(PAPER, set_fields(alpha=None), AdapterConfigError, "'alpha'"),
    "alpha infinite": Case(PAPER, write_config(ALPHA % "Infinity"), AdapterConfigError, "Infinity"),
    "alpha NaN": Case(PAPER, write_config(ALPHA % "NaN"), AdapterConfigError, "NaN"),
    "alpha 1e999": Case(PAPER, write_config(ALPHA % "1e999"), AdapterConfigError, "range"),
    "alpha of 10,000 digits": Case(
        PAPER, write_config(ALPHA % ("9" * 10_000)), AdapterConfigError, "digits"
    ),
    "alpha 10^30": Case(PEFT, set_fields(shadow_alpha=10**30), AdapterConfigError, "finite"),
    "rank 1e9": Case(PAPER, set_fields(injection_hidden_size=10**9), AdapterLimitError, "rank"),
    "rank 10^20": Case(PEFT, set_fields(r=10**20), AdapterConfigError, "'r'"),
    "rank zero": Case(PEFT, set_fields(r=0), AdapterConfigError, "'r'"),
    "rank a float": Case(PEFT, set_fields(r=8.0), AdapterConfigError, "'r'"),
    "rank not the tensors'": Case(PEFT, set_fields(r=4), AdapterConfigError, "tensors have 8"),
    "gate 1e9": Case(PEFT, set_fields(update_hidden_size=10**9), AdapterLimitError, "gate"),
    "1e9 shadow layers": Case(
        PAPER, set_fields(num_shadow_layers=10**9), AdapterLimitError, "layers"
    ),
    "1e9 mirror layers": Case(
        PEFT, set_fields(shadow_num_hidden_layers=10**9), AdapterLimitError, "layers"
    ),
    "MLP width 1e9": Case(
        PEFT, set_fields(shadow_intermediate_size=10**9), AdapterLimitError, "MLP"
    ),
    "1e9 heads": Case(
        PAPER, set_fields(shadow_num_attention_heads=10**9), AdapterLimitError, "heads"
    ),
    "heads that do not divide": Case(
        PAPER, set_fields(shadow_num_attention_heads=3), AdapterConfigError, "divide"
    ),
    "mirror width 1e9": Case(
        PEFT, set_fields(shadow_hidden_size=10**9), AdapterTensorError, "lacks"
    ),
    "unknown field": Case(
        PAPER, set_fields(residual_scale=2.0), AdapterConfigError, "'residual_scale'"
    ),
    "unknown peft field": Case(PEFT, set_fields(use_dora=True), AdapterConfigError, "'use_dora'"),
    "another peft type": Case(PEFT, set_fields(peft_type="LORA"), AdapterConfigError, "LORA"),
    "another task": Case(PEFT, set_fields(task_type="SEQ_CLS"), AdapterConfigError, "SEQ_CLS"),
    "trained biases": Case(PEFT, set_fields(bias="all"), AdapterConfigError, "biases"),
    "trained modules": Case(
        PEFT, set_fields(modules_to_save=["lm_head"]), AdapterConfigError, "lm_head"
    ),
    "trained paper head": Case(
        PAPER, set_fields(modules_to_save=["lm_head"]), AdapterConfigError, "lm_head"
    ),
    "modules a string": Case(
        PAPER, set_fields(modules_to_save="lm_head"), AdapterConfigError, "list"
    ),
    "a million layers_to_transform": Case(
        PEFT, set_fields(layers_to_transform=list(range(10**6))), AdapterFileError, "limit"
    ),
    "negative layers_to_transform": Case(
        PEFT, set_fields(layers_to_transform=[-1]), AdapterConfigError, "layers_to"
    ),
    "catastrophic pattern": Case(
        PEFT, set_fields(target_modules="(.*)*x"), AdapterConfigError, "complex"
    ),
    "hidden catastrophic pattern": Case(
        PEFT, set_fields(target_modules="(?x)(.+) +x"), AdapterConfigError, "complex"
    ),
    "many quantifiers": Case(
        PEFT, set_fields(target_modules=".*.*.*.*.*x"), AdapterConfigError, "complex"
    ),
    "invalid pattern": Case(
        PEFT, set_fields(target_modules="("), AdapterConfigError, "valid pattern"
    ),
    "remote backbone": Case(
        PEFT, set_fields(shadow_model="evil/repo"), AdapterConfigError, "never downloads"
    ),
    "backbone by path": Case(
        PEFT, set_fields(shadow_model="../../x"), AdapterConfigError, "never downloads"
    ),
    "backbone a number": Case(PEFT, set_fields(shadow_model=1), AdapterConfigError, "shadow_model"),
    "config empty": Case(PAPER, write_config(b""), AdapterConfigError, "malformed"),
    "config of NULs": Case(PAPER, write_config(bytes(100)), AdapterConfigError, "malformed"),
    "config with a BOM": Case(
        PAPER, write_config(b"\xef\xbb\xbf{}"), AdapterConfigError, "malformed"
    ),
    "config in UTF-16": Case(
        PEFT, write_config('{"peft_type": "SHADOW"}'.encode("utf-16")), AdapterConfigError, "JSON"
    ),
    "config with garbage behind": Case(
        PAPER, write_config('{"alpha": 1.0} }'), AdapterConfigError, "malformed|JSON"
    ),
    "config with a comment": Case(
        PAPER, write_config('{"alpha": 1.0 /* x */}'), AdapterConfigError, "malformed"
    ),
    "config null": Case(PEFT, write_config("null"), AdapterConfigError, "NoneType"),
    "config python": Case(
        PEFT, write_config("{'peft_type': 'SHADOW'}"), AdapterConfigError, "malformed"
    ),
    "config of 100,000 lists": Case(
        PAPER, write_config('{"x": [' + "[]," * 100_000 + "[]]}"), AdapterConfigError, "know"
    ),
    "code in a paper config": Case(
        PAPER, set_fields(auto_map={"AutoModel": "x.Y"}), AdapterConfigError, "auto_map"
    ),
    "code in a peft config": Case(
        PEFT, set_fields(auto_map={"AutoModel": "x--y.Z"}), AdapterConfigError, "auto_map"
    ),
    "trust_remote_code": Case(
        PEFT, set_fields(trust_remote_code=True), AdapterConfigError, "trust_remote_code"
    ),
    "field name with a NUL": Case(PAPER, set_fields(**{"a\0b": 1}), AdapterConfigError, r"a\\x00b"),
    "field name a surrogate": Case(
        PAPER, write_config('{"\\ud800": 1}'), AdapterConfigError, "ud800"
    ),
    "alpha 1e308": Case(PAPER, set_fields(alpha=1e308), AdapterConfigError, "finite"),
    "alpha a list": Case(PEFT, set_fields(shadow_alpha=[1.0]), AdapterConfigError, "shadow_alpha"),
    "alpha -Infinity": Case(
        PAPER, write_config(ALPHA % "-Infinity"), AdapterConfigError, "not a number"
    ),
    "rank a boolean": Case(PEFT, set_fields(r=True), AdapterConfigError, "'r'"),
    "rank a string": Case(PEFT, set_fields(r="8"), AdapterConfigError, "'r'"),
    "rank negative": Case(
        PAPER, set_fields(injection_hidden_size=-8), AdapterConfigError, "injection_hidden_size"
    ),
    "gate not the tensors'": Case(
        PAPER, set_fields(gate_hidden_size=9), AdapterConfigError, "tensors have 8 and 10"
    ),
    "head size 1e9": Case(PAPER, set_fields(shadow_head_dim=10**9), AdapterTensorError, "expected"),
    "1e9 key-value heads": Case(
        PAPER, set_fields(shadow_num_key_value_heads=10**9), AdapterConfigError, "divide"
    ),
    "layer 2^20 to transform": Case(
        PEFT, set_fields(layers_to_transform=[1 << 20]), AdapterConfigError, "layers_to"
    ),
    "a boolean to transform": Case(
        PEFT, set_fields(layers_to_transform=[True]), AdapterConfigError, "layers_to"
    ),
    "numbers as target modules": Case(
        PEFT, set_fields(target_modules=[1, 2]), AdapterConfigError, "target_modules"
    ),
    "150,000 target modules": Case(
        PEFT, set_fields(target_modules=["x"] * 150_000), AdapterMismatchError, "wraps 0 layers"
    ),
    "pattern that repeats 10^9 times": Case(
        PEFT, set_fields(target_modules="x{999999999999}"), AdapterConfigError, "valid pattern"
    ),
    "backbone by URL": Case(
        PEFT,
        set_fields(shadow_model="https://evil.example/x"),
        AdapterConfigError,
        "never downloads",
    ),
    "backbone by absolute path": Case(
        PEFT, set_fields(shadow_model="/etc/passwd"), AdapterConfigError, "never downloads"
    ),
    "backbone of another type": Case(
        EXPLICIT, set_backbone(model_type="bert"), AdapterConfigError, "supported are"
    ),
    "backbone type a list": Case(
        EXPLICIT, set_backbone(model_type=["llama"]), AdapterConfigError, "supported are"
    ),
    "backbone with code": Case(
        EXPLICIT, set_backbone(auto_map={"AutoModel": "x.Y"}), AdapterConfigError, "auto_map"
    ),
    "quantised backbone": Case(
        EXPLICIT, set_backbone(quantization_config={"bits": 4}), AdapterConfigError, "quant"
    ),
    "backbone of 1e9 layers": Case(
        EXPLICIT, set_backbone(num_hidden_layers=10**9), AdapterLimitError, "layers"
    ),
    "backbone vocabulary 1e9": Case(
        EXPLICIT, set_backbone(vocab_size=10**9), AdapterLimitError, "rows"
    ),
    "backbone vocabulary too small": Case(
        EXPLICIT, set_backbone(vocab_size=100), AdapterMismatchError, "vocabulary"
    ),
    "backbone context 2^30": Case(
        EXPLICIT, set_backbone(max_position_embeddings=1 << 30), AdapterConfigError, "positions"
    ),
    "backbone activation": Case(
        EXPLICIT, set_backbone(hidden_act="relu"), AdapterConfigError, "relu"
    ),
    "backbone epsilon": Case(
        PEFT_EXPLICIT, set_backbone(rms_norm_eps=-1.0), AdapterConfigError, "epsilon"
    ),
    "backbone rope type": Case(
        EXPLICIT,
        set_backbone(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        AdapterConfigError,
        "dynamic",
    ),
    "backbone rope theta": Case(
        EXPLICIT,
        set_backbone(rope_parameters={"rope_type": "default", "rope_theta": -1.0}),
        AdapterConfigError,
        "rope",
    ),
    "projected without inner config": Case(
        EXPLICIT,
        set_backbone(model_type="causal_lm_with_hidden_projection", base_hidden_size=64),
        AdapterConfigError,
        "shadow_model_config",
    ),
    "projected to another width": Case(
        EXPLICIT,
        set_backbone(model_type="causal_lm_with_hidden_projection", base_hidden_size=96),
        AdapterMismatchError,
        "width 96",
    ),
    "backbone config deep": Case(
        EXPLICIT,
        lambda a: backbone_file(a).write_text('{"a":' + DEEP + "}") and None,
        AdapterConfigError,
        "nests",
    ),
    "backbone of no type": Case(
        EXPLICIT, set_backbone(model_type=None), AdapterConfigError, "supported are"
    ),
    "backbone width 1e9": Case(
        EXPLICIT, set_backbone(hidden_size=10**9), AdapterTensorError, "expected"
    ),
    "backbone width a string": Case(
        EXPLICIT, set_backbone(hidden_size="64"), AdapterConfigError, "valid|hidden_size"
    ),
    "backbone MLP width 1e9": Case(
        PEFT_EXPLICIT, set_backbone(intermediate_size=10**9), AdapterLimitError, "MLP"
    ),
    "backbone heads negative": Case(
        PEFT_EXPLICIT, set_backbone(num_attention_heads=-4), AdapterConfigError, "valid|heads"
    ),
    "backbone layers a float": Case(
        EXPLICIT, set_backbone(num_hidden_layers=2.5), AdapterConfigError, "num_hidden_layers"
    ),
}
