"""The demo that ships with the server: a tiny base, adapters, prompts with expected answers.

Runs in: API process. Reads files only; imports neither torch nor vllm.
"""

from shadow_server.demo.catalog import (
    DemoPrompt,
    demo_adapter_paths,
    demo_model_path,
    demo_prompts,
)

__all__ = ["DemoPrompt", "demo_adapter_paths", "demo_model_path", "demo_prompts"]
