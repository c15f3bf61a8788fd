"""Loading, listing and unloading adapters over HTTP.

Runs in: API process.
"""
