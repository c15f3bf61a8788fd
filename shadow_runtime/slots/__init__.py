"""Adapter slots: what an adapter occupies in device memory and who occupies which slot.

Runs in: GPU worker.
"""
