"""Everything that touches vLLM's internals; nothing else in the project imports vllm.

Runs in: API process | engine core | GPU worker.
"""
