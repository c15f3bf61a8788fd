"""What commands ask of the runtime that is installed here, without starting an engine.

Runs in: the command's own process. Beside `engine` the only module that imports shadow_runtime, and only when asked.
"""

from __future__ import annotations


def check_engine_version() -> str:
    """Return the installed vLLM's version.

    Raises:
        ValueError: there is none, or it is outside of the supported range; one sentence that says what to install.
    """
    from shadow_runtime.errors import UnsupportedStackError
    from shadow_runtime.vllm_bridge.version import check_version

    try:
        return check_version()
    except UnsupportedStackError as error:
        raise ValueError(str(error)) from None
