"""ShadowServe's runtime: a vLLM plugin that serves ShadowPEFT adapters over one frozen base model.

Runs in: API process | engine core | GPU worker. Importing the package imports neither torch nor vllm.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
