"""The security tests for `python -O`, where an assert does nothing: a script that raises by itself.

Run as `python -O optimized_security.py <originals> <scratch>`. Every hostile adapter is refused with its code when it
is read in this process, when the store stages it, and when a sandbox (with -O, too) reads the staged copy; sound ones
pass.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from transformers import AutoConfig

from malicious_adapter import CORPUS, KINDS
from sandbox_process import HostileSandbox
from shadow_runtime.artifact import base_geometry, load_adapter
from shadow_runtime.config import ShadowConfig, SlotClass
from shadow_runtime.errors import AdapterLimitError, ShadowError, StorageError
from shadow_runtime.store import ArtifactStore, HubSource
from shadow_runtime.types import BaseGeometry


def require(is_true: bool, what: str) -> None:
    """Raise where an assert would be gone."""
    if not is_true:
        raise SystemExit(f"not so under -O: {what}")


def code_of(call: Callable[[], object]) -> str | None:
    """Return the code of the error that a call raises, None when it raises none."""
    try:
        call()
    except ShadowError as error:
        return error.code
    return None


async def sandbox_code(sandbox: HostileSandbox, path: Path) -> str | None:
    """Return the code of the sandbox's refusal, None when it refuses nothing."""
    try:
        await sandbox.validate(str(path))
    except ShadowError as error:
        return error.code
    return None


def check_store(store: ArtifactStore) -> None:
    """Names, digests and sources that are refused."""
    staged = store.begin_upload()
    for name in ("../x", "/etc/passwd", "x.pt", ""):
        require(code_of(lambda name=name: staged.open(name)) is not None, f"upload of {name!r}")  # type: ignore[misc]
    staged.discard()
    require(code_of(lambda: store.find("sha256:../x")) == StorageError.code, "digest")
    require(code_of(lambda: HubSource().stage(store, "a/b", "0" * 40)) is not None, "hub")


async def check_corpus(originals: Path, scratch: Path, base: BaseGeometry) -> int:
    """Every hostile adapter by every way in."""
    store = ArtifactStore(scratch / "store")
    check_store(store)
    manifests = {kind: load_adapter(originals / kind, base).manifest for kind in KINDS}
    config = ShadowConfig(tuple(SlotClass(k, m.backbone, 2) for k, m in manifests.items()))
    sandbox = HostileSandbox(base, config, max_memory_bytes=256 << 20, max_seconds=20.0)
    try:
        for kind in KINDS:
            require(await sandbox.validate(str(originals / kind)) == manifests[kind], kind)
        for name, case in CORPUS.items():
            adapter = case.build(originals, scratch / "adapter")
            expected = case.error.code
            require(code_of(lambda path=adapter: load_adapter(path, base)) == expected, name)  # type: ignore[misc]
            try:
                staged = store.stage_directory(adapter, source_label="x")
            except ShadowError as error:
                require(error.code == expected, f"{name} staged")
            else:
                require(await sandbox_code(sandbox, staged.path) == expected, f"{name} sandboxed")
                staged.discard()
            shutil.rmtree(adapter)
        for action in ("allocate", "segfault", "exit 0 without an answer"):
            code = await sandbox_code(sandbox, Path("/x") / action)
            require(code == AdapterLimitError.code, action)
    finally:
        await sandbox.close()
    return len(CORPUS)


def main() -> None:
    """Run every check; the exit code tells."""
    require(sys.flags.optimize > 0, "the flag itself")
    originals, scratch = (Path(argument) for argument in sys.argv[1:])
    base = base_geometry(AutoConfig.from_pretrained(originals / "base"))
    refused = asyncio.run(check_corpus(originals, scratch, base))
    sys.stdout.write(f"{refused} refused\n")


if __name__ == "__main__":
    main()
