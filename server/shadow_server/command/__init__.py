"""The commands that talk to a running server, and those that look at a machine.

Runs in: the command's own process. Nothing here imports torch, vllm or the server's own packages at its top: a command
that lists adapters starts in a fraction of a second.
"""
