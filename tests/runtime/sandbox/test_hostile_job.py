"""A job that was taken over: it ends, it reaches nothing, and others go on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from hostile_sandbox import ENDS, REFUSED
from sandbox_process import children_of, wait_until
from shadow_runtime.errors import AdapterError, AdapterLimitError
from shadow_runtime.sandbox.syscall_filter import is_supported
from shadow_runtime.store import CanonicalTarget

pytestmark = pytest.mark.asyncio(loop_scope="module")


MEMORY = "takes more than the 268435456 bytes of memory"
REASONS = {
    "spin": "takes more than the 5 s",
    "sleep": "takes more than the 5 s",
    "allocate": MEMORY,
    "allocate bytes": MEMORY,
    "segfault": "ended by SIGSEGV",
    "abort": "ended by SIG",
    "exit 0 without an answer": "exit code 0",
    "exit 1": "exit code 1",
    "raise": "exit code 70",
    "recurse": "exit code 70",
    "answer without end": "ended by SIGKILL",
}


async def ask(sandbox: Any, action: str) -> str:
    """Return what an action says."""
    with pytest.raises(AdapterError) as caught:
        await sandbox.validate(f"/x/{action}")
    assert type(caught.value) is AdapterError
    return str(caught.value)


@pytest.mark.parametrize("action", ENDS)
async def test_ends_as_a_limit_while_others_go_on(
    action: str, sandbox: Any, originals: Path
) -> None:
    pid = sandbox.zygote_pid

    async def validate_others() -> int:
        for _ in range(5):
            await sandbox.validate(str(originals / "peft_mirror"))
        return 5

    others = asyncio.create_task(validate_others())
    started = time.monotonic()
    with pytest.raises(AdapterLimitError, match=REASONS[action]) as caught:
        await sandbox.validate(f"/x/{action}")
    assert time.monotonic() - started < 10
    assert await others == 5
    assert sandbox.zygote_pid == pid
    assert str(caught.value).isascii()


@pytest.mark.skipif(not is_supported(), reason="no filter for this machine")
@pytest.mark.parametrize("action", REFUSED)
async def test_is_refused(action: str, sandbox: Any) -> None:
    assert await ask(sandbox, action) == "refused: Operation not permitted"


@pytest.mark.parametrize(
    ("action", "reason"),
    [("fill the disk", "File too large"), ("reopen for reading and writing", "Operation not")],
)
async def test_the_file_that_a_job_may_write_leads_no_further(
    action: str, reason: str, sandbox: Any, tmp_path: Path
) -> None:
    with (tmp_path / "x").open("wb") as file:
        target = CanonicalTarget(file.fileno(), 1 << 20)
        with pytest.raises(AdapterError, match=f"refused: {reason}"):
            await sandbox.validate(f"/x/{action}", None, target)
    assert (tmp_path / "x").stat().st_size <= 1 << 20


async def test_has_one_descriptor_beside_the_standard_ones(sandbox: Any) -> None:
    # The listing itself is open, too.
    assert len((await ask(sandbox, "descriptors")).split(",")) == 5


async def test_has_neither_engine_nor_database_imported(sandbox: Any) -> None:
    modules = (await ask(sandbox, "modules")).split(",")
    assert "torch" in modules
    assert not {"vllm", "sqlalchemy", "shadow_server"} & set(modules)


async def test_is_nice_and_leaves_no_core(sandbox: Any) -> None:
    assert int(await ask(sandbox, "nice")) >= 10
    assert await ask(sandbox, "dumpable") == "0"


async def test_cancelling_a_request_ends_its_job(sandbox: Any) -> None:
    job = asyncio.create_task(sandbox.validate("/x/sleep"))
    await wait_until(lambda: bool(children_of(sandbox.zygote_pid)))
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    await wait_until(lambda: not children_of(sandbox.zygote_pid))
