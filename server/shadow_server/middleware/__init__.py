"""What every request passes before its route.

Runs in: API process.
"""
