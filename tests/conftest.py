"""Settings that every suite needs before anything is imported."""

import os

# Tests talk to nobody: weights and tokenizers are on disk, and the engine must not report usage.
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"):
    os.environ.setdefault(name, "1")
