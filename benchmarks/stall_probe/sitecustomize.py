"""What every process of a server did in its slow steps: put this folder on PYTHONPATH and name a file in STALL_OUT.

    STALL_OUT=/tmp/stall PYTHONPATH=benchmarks/stall_probe python benchmarks/hot_swap.py ...
    python benchmarks/stall_report.py /tmp/stall

Python imports it at start. A thread samples the main thread's stack every millisecond and wraps the functions named
below as soon as their modules are there; once a second it appends to `STALL_OUT.<pid>.jsonl`. It takes the interpreter
for some 50 us a sample, so compare runs with the probe only with one another.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import time
from typing import Any

# Module, class (None: every class of the module that defines the method), methods.
WATCHED = [
    ("vllm.v1.engine.core", "EngineCore", ["step", "step_with_batch_queue"]),
    ("vllm.v1.engine.core", "EngineCoreProc", ["_handle_client_request"]),
    ("vllm.v1.worker.gpu.model_runner", "GPUModelRunner", ["execute_model"]),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", ["execute_model"]),
    ("shadow_runtime.vllm_bridge.scheduler", None, ["schedule"]),
    (
        "shadow_runtime.vllm_bridge.residency",
        "AdapterResidency",
        ["load", "unload", "prefetch", "release_slot", "set_active_adapters"],
    ),
    ("shadow_runtime.vllm_bridge.image_loader", "ImageLoader", ["_read"]),
    ("shadow_runtime.slots.fill", "StreamWriter", ["_copy_on"]),
]
SAMPLED = ("shadow_runtime.vllm_bridge.residency", "fastapi")
"""A process that has imported one of them is sampled."""

MAX_FRAMES = 12


class Probe:
    """Calls and stack samples since the last write."""

    def __init__(self, path: str) -> None:
        self._path = f"{path}.{os.getpid()}.jsonl"
        self._main = threading.main_thread().ident
        self._lines: list[list[Any]] = []
        self._wrapped: set[tuple[type, str]] = set()

    def run(self) -> None:
        """Sample for ever."""
        due = 0.0
        while True:
            time.sleep(0.001)
            now = time.monotonic()
            if now >= due:
                due = now + 1.0
                self._wrap_all()
                self._write()
            if any(name in sys.modules for name in SAMPLED):
                self._lines.append(["stack", now, self._stack()])

    def _stack(self) -> list[str]:
        frame, names = sys._current_frames().get(self._main or 0), []
        while frame is not None and len(names) < MAX_FRAMES:
            code = frame.f_code
            names.append(f"{os.path.basename(code.co_filename)}:{code.co_name}:{frame.f_lineno}")
            frame = frame.f_back
        return names

    def _wrap_all(self) -> None:
        for module_name, class_name, methods in WATCHED:
            module = sys.modules.get(module_name)
            for name, value in list(vars(module).items()) if module else ():
                if isinstance(value, type) and class_name in (None, name):
                    self._wrap(value, methods)

    def _wrap(self, owner: type, methods: list[str]) -> None:
        for name in methods:
            method = vars(owner).get(name)
            if method is not None and (owner, name) not in self._wrapped:
                self._wrapped.add((owner, name))
                setattr(owner, name, self._timed(name, method))

    def _timed(self, name: str, method: Any) -> Any:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.monotonic()
            try:
                return method(*args, **kwargs)
            finally:
                tokens = getattr(args[1], "total_num_scheduled_tokens", None) if args[1:] else None
                self._lines.append(["call", started, time.monotonic(), name, tokens])

        return call

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            with open(self._path, "a") as file:
                file.writelines(json.dumps(line, default=str) + "\n" for line in lines)


if os.environ.get("STALL_OUT"):
    threading.Thread(target=Probe(os.environ["STALL_OUT"]).run, daemon=True).start()
