"""ShadowServe's HTTP server: vLLM's OpenAI handlers behind adapter names, leases and one error shape.

Runs in: API process. Importing the package imports neither torch nor vllm.
"""
