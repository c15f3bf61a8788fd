"""The OpenAI surface: how a request names an adapter, and the list of models.

Runs in: API process.
"""
