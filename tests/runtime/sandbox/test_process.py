"""Life of the zygote: clean environment, replaced when it dies, gone with the server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sandbox_process
from sandbox_process import (
    HostileSandbox,
    children_of,
    environment_of,
    is_alive,
    num_descriptors,
    wait_until,
)
from shadow_runtime.config import ShadowConfig
from shadow_runtime.errors import SandboxError
from shadow_runtime.sandbox import validator as validator_module
from shadow_runtime.sandbox.job import JobContext
from shadow_runtime.types import BaseGeometry


@pytest.fixture
def fresh(geometry: BaseGeometry, config: ShadowConfig, limits: dict[str, Any]) -> HostileSandbox:
    """Return a sandbox that is not started."""
    return HostileSandbox(geometry, config, **limits)


async def test_the_environment_is_clean(
    fresh: HostileSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    await fresh.start()
    environment = environment_of(fresh.zygote_pid)
    await fresh.close()
    assert b"CUDA_VISIBLE_DEVICES=" in environment
    assert not any(b"secret" in entry for entry in environment)


async def test_a_dead_zygote_is_replaced_and_its_job_done(
    fresh: HostileSandbox, originals: Path
) -> None:
    await fresh.start()
    first = fresh.zygote_pid
    os.kill(first, signal.SIGKILL)
    manifest = await fresh.validate(str(originals / "peft_mirror"))
    assert manifest.format == "peft"
    assert fresh.zygote_pid != first
    # And one that dies with a job in flight: its job dies with it and is run again.
    second = fresh.zygote_pid
    job = asyncio.create_task(fresh.validate("/x/sleep"))
    await wait_until(lambda: bool(children_of(second)))
    (child,) = children_of(second)
    os.kill(second, signal.SIGKILL)
    await wait_until(lambda: not is_alive(second) and not is_alive(child))
    await wait_until(lambda: fresh.zygote_pid not in (0, second))
    await wait_until(lambda: bool(children_of(fresh.zygote_pid)))
    job.cancel()
    await asyncio.gather(job, return_exceptions=True)
    await fresh.close()


async def test_a_spawned_zygote_is_not_waited_for_until_it_is_needed(
    fresh: HostileSandbox, originals: Path
) -> None:
    await fresh.spawn()
    zygote = fresh.zygote_pid
    # Its imports take seconds, of which nothing has passed.
    starting = asyncio.create_task(fresh.start())
    await asyncio.sleep(0)
    assert not starting.done()
    # Somebody who does not want to wait any longer takes it from nobody else.
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert (await fresh.validate(str(originals / "peft_mirror"))).format == "peft"
    assert fresh.zygote_pid == zygote
    await fresh.close()


@pytest.mark.parametrize("is_noticed", [True, False])
async def test_a_spawned_zygote_that_has_ended_is_replaced(
    fresh: HostileSandbox, is_noticed: bool
) -> None:
    await fresh.spawn()
    first = fresh.zygote_pid
    os.kill(first, signal.SIGKILL)
    if is_noticed:
        await wait_until(lambda: fresh._zygote is not None and fresh._zygote.is_gone)
    await fresh.start()
    assert fresh.zygote_pid != first
    await fresh.close()


async def test_a_zygote_that_cannot_start_is_not_started_for_ever(
    geometry: BaseGeometry, config: ShadowConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starts = tmp_path / "starts"
    command = (sys.executable, "-c", f"open({str(starts)!r}, 'a').write('x')")
    monkeypatch.setattr(HostileSandbox, "_command", command)
    sandbox = HostileSandbox(geometry, config)
    with pytest.raises(SandboxError, match="has ended"):
        await sandbox.start()
    assert starts.read_text() == "x"
    await sandbox.spawn()
    with pytest.raises(SandboxError, match="has ended"):
        await sandbox.start()
    assert starts.read_text() == "xxx"
    await sandbox.close()


async def test_a_zygote_that_is_never_ready(
    geometry: BaseGeometry, config: ShadowConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (sys.executable, "-c", "import time; time.sleep(1000)")
    monkeypatch.setattr(HostileSandbox, "_command", command)
    monkeypatch.setattr(validator_module, "_START_SECONDS", 0.2)
    sandbox = HostileSandbox(geometry, config)
    await sandbox.spawn()
    zygote = sandbox.zygote_pid
    with pytest.raises(SandboxError, match=r"did not start within 0\.2 s"):
        await sandbox.start()
    assert not is_alive(zygote)
    await sandbox.close()


async def test_close_ends_everything(fresh: HostileSandbox) -> None:
    before = num_descriptors(os.getpid())
    await fresh.start()
    zygote = fresh.zygote_pid
    jobs = [asyncio.create_task(fresh.validate("/x/sleep")) for _ in range(3)]
    await wait_until(lambda: len(children_of(zygote)) == 3)
    children = children_of(zygote)
    await fresh.close()
    results = await asyncio.gather(*jobs, return_exceptions=True)
    assert [isinstance(result, SandboxError) for result in results] == [True] * 3
    await wait_until(lambda: not any(is_alive(pid) for pid in (zygote, *children)))
    await fresh.close()
    with pytest.raises(SandboxError, match="closed"):
        await fresh.validate("/x/sleep")
    assert num_descriptors(os.getpid()) == before


async def test_no_more_jobs_at_once_than_allowed(fresh: HostileSandbox) -> None:
    await fresh.start()
    jobs = [asyncio.create_task(fresh.validate("/x/sleep")) for _ in range(6)]
    most = 0
    for _ in range(50):
        most = max(most, len(children_of(fresh.zygote_pid)))
        await asyncio.sleep(0.01)
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)
    await fresh.close()
    assert most == 4


SERVER = """
import asyncio, json, sys
from sandbox_process import HostileSandbox
from shadow_runtime.sandbox.job import JobContext

context = JobContext.from_dict(json.load(sys.stdin))

async def main():
    sandbox = HostileSandbox(context.base, context.config, max_seconds=1000.0)
    await sandbox.start()
    job = asyncio.create_task(sandbox.validate("/x/sleep"))
    sys.stdout.write(f"{sandbox.zygote_pid}\\n")
    sys.stdout.flush()
    await job

asyncio.run(main())
"""


async def test_a_server_that_is_killed_leaves_no_process(
    geometry: BaseGeometry, config: ShadowConfig
) -> None:
    context = JobContext(geometry, config, 2, 256 << 20, 1000.0).to_dict()
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SERVER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(sandbox_process.__file__).parent)},
    )
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(context).encode())
    server.stdin.close()
    zygote = int(await server.stdout.readline())
    await wait_until(lambda: bool(children_of(zygote)))
    (child,) = children_of(zygote)
    server.kill()
    await wait_until(lambda: not is_alive(zygote) and not is_alive(child))
    await server.wait()
