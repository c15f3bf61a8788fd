"""The server's Prometheus series.

Runs in: API process.
"""
