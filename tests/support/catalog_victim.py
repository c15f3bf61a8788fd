"""A process that is killed while it changes a catalog, and the warm one that it is forked from.

The warm process reads commands from its input, one JSON list a line, and forks a victim for each. All write to one
pipe, a line at a time, so the order of lines is the order of events:

    ["start", pid]            by the warm process
    ["open"]                  by the victim, once its catalog is open
    ["try", operation]        before an operation
    ["done", answer]          after it returned: the acknowledgement
    ["dead", signal or 0]     by the warm process, once the victim has left no trace in the kernel
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from catalog_model import (
    BASE,
    Operation,
    digest_of,
    perform,
    random_operation,
)
from shadow_runtime.catalog import Catalog
from shadow_runtime.store import ArtifactStore

FILE_NAME = "adapter_model.safetensors"


def content_of(seed: int) -> bytes:
    """Return the bytes that stand for an adapter's."""
    return f"weights of {seed} ".encode() * 2000


def publish_bytes(store: ArtifactStore, source_root: Path, seed: int) -> None:
    """Put the bytes of a seed into the store, as a publish does before it tells the catalog."""
    source = source_root / str(seed)
    store.commit(store.stage_directory(source, source_label="test"), digest_of(seed))


def write_sources(source_root: Path, seeds: range) -> None:
    """Make the directories that `publish_bytes` takes its files from."""
    for seed in seeds:
        folder = source_root / str(seed)
        folder.mkdir(parents=True)
        (folder / FILE_NAME).write_bytes(content_of(seed))


class WarmProcess:
    """The parent's side: starts victims, reads what they say, kills them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, seed: int, url: str, store: Path, sources: Path) -> int:
        """Start a victim and return its process id."""
        self._process.stdin.write(json.dumps([seed, url, str(store), str(sources)]) + "\n")
        self._process.stdin.flush()
        word, pid = self.read()
        assert word == "start"
        return pid

    def read(self) -> list[Any]:
        """Return the next line."""
        line = self._process.stdout.readline()
        assert line, "the warm process ended"
        return json.loads(line)


@contextmanager
def warm_process() -> Iterator[WarmProcess]:
    """Start the process that victims are forked from, and end it with the block."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        text=True,
    )
    with process:
        yield WarmProcess(process)
        process.stdin.close()
        assert process.wait(timeout=30) == 0


def say(*words: Any) -> None:
    """Write a line in one piece: a kill leaves all of it or nothing."""
    os.write(sys.stdout.fileno(), json.dumps(words).encode() + b"\n")


def change_for_ever(seed: int, url: str, store_root: str, source_root: str) -> None:
    catalog = Catalog.open(url, BASE)
    store = ArtifactStore(Path(store_root), file_names=(FILE_NAME,))
    say("open")
    rng = random.Random(seed)
    while True:
        operation = random_operation(rng)
        say("try", operation)
        say("done", change(catalog, store, Path(source_root), operation))


def change(catalog: Catalog, store: ArtifactStore, sources: Path, operation: Operation) -> Any:
    verb, _, seed = operation
    if verb == "publish":
        publish_bytes(store, sources, seed)
    answer = perform(catalog, operation)
    if verb == "delete":
        store.collect(catalog.referenced_digests(), min_age_seconds=0)
    return answer


def main() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            say("start", os.getpid())
            change_for_ever(*json.loads(line))
        _, status = os.waitpid(pid, 0)
        say("dead", os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)


if __name__ == "__main__":
    main()
