"""How long a thread may keep the interpreter from others that wait for it.

Runs in: API process | GPU worker. Imports neither torch nor vllm.
"""

from __future__ import annotations

import sys

_SECONDS = 0.0001


def shorten_switch_interval() -> None:
    """Have threads beside an event loop or a step loop give way after a tenth of a millisecond in place of five.

    Both loops let go of the interpreter several times a turn, for every write to a socket or launch on a device, and
    wait as long as this each time while a thread computes: five milliseconds are more than a step.
    """
    sys.setswitchinterval(_SECONDS)
