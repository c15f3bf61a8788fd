"""Validation of untrusted bytes in processes of their own, with bounded memory and time.

Runs in: API process (asks) and the sandbox's own processes.

    API process            SandboxValidator: one job at a time per slot, time limit, restarts
      │ socket             requests with the pipe that takes the answer; exit statuses come back
    zygote                 has torch and the readers imported, parses nothing, forks
      │ fork
    job                    limits, system-call filter; reads one adapter, writes one JSON answer, exits
"""

from shadow_runtime.sandbox.validator import SandboxValidator

__all__ = ["SandboxValidator"]
