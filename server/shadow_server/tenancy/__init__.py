"""Who asks, and how much of the server is theirs.

Runs in: API process. Pure functions and small classes that take a clock; nothing here knows HTTP.
"""
