"""Untrusted bytes to a manifest, in a process of their own with bounded memory and time.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any

from shadow_runtime import errors
from shadow_runtime.config import ShadowConfig
from shadow_runtime.errors import AdapterLimitError, SandboxError, ShadowError
from shadow_runtime.sandbox.process import COMMAND, JobOutcome, ZygoteEndedError, ZygoteProcess
from shadow_runtime.store.staging import CanonicalTarget
from shadow_runtime.types import AdapterManifest, BaseGeometry, TensorReport, ValidationReport

logger = logging.getLogger(__name__)

_START_SECONDS = 120.0
_ERROR_CLASSES: dict[str, type[ShadowError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ShadowError)
}


class SandboxValidator:
    """Validates adapters in forks of one clean process; see `registry.Validator`.

    Invariants: an adapter's bytes are never parsed in this process; at most `max_concurrent` jobs run; a job that
    crashes, hangs or eats memory ends as `AdapterLimitError` and touches no other job. A zygote that dies is replaced
    and its jobs are run again once. All methods belong to one event loop.

    Args:
        base: shape of the base model.
        config: slot classes and limits of the server.
        max_memory_bytes: memory that one adapter may take while it is validated; about twice its file is needed.
        max_seconds: time that one adapter may take, from the start of its process.
        max_concurrent: jobs at once; others wait.
        element_bytes: bytes of one number in the model's dtype, for the slot's size.
    """

    _command = COMMAND

    def __init__(
        self,
        base: BaseGeometry,
        config: ShadowConfig,
        *,
        max_memory_bytes: int = 4 << 30,
        max_seconds: float = 60.0,
        max_concurrent: int = 2,
        element_bytes: int = 2,
    ) -> None:
        # Imported here: the catalog brings SQLAlchemy, which the sandbox's own processes do without.
        from shadow_runtime.catalog.fingerprint import base_fingerprint
        from shadow_runtime.sandbox.job import JobContext

        context = JobContext(base, config, element_bytes, max_memory_bytes, max_seconds)
        self._context = context.to_dict()
        self._fingerprint = base_fingerprint(base)
        self._max_seconds = max_seconds
        self._places = asyncio.Semaphore(max_concurrent)
        self._starting = asyncio.Lock()
        self._zygote: ZygoteProcess | None = None
        self._is_closed = False

    async def spawn(self) -> None:
        """Start the zygote and do not wait for it: beside other work its imports cost no time."""
        async with self._starting:
            await self._spawn()

    async def start(self) -> None:
        """Start the zygote and wait for it, so that the first adapter need not; raises SandboxError."""
        await self._get_zygote()

    async def close(self) -> None:
        """End every process of the sandbox; jobs in flight end as SandboxError. May be called again."""
        self._is_closed = True
        async with self._starting:
            if self._zygote is not None:
                await self._zygote.close()
                self._zygote = None

    async def validate(
        self,
        path: str,
        backbone_config: str | None = None,
        canonical: CanonicalTarget | None = None,
    ) -> AdapterManifest:
        """Return the manifest of the adapter at `path`.

        Args:
            path: directory of the adapter.
            backbone_config: file of an explicit backbone's config from the operator.
            canonical: file that the job writes the canonical adapter to; left empty when that is over its bound.

        Raises:
            AdapterError, AdapterNotFoundError: as `artifact.load_adapter`.
            AdapterLimitError: it fits no slot class, or takes too much time or memory, or ends its process.
            SandboxError: the sandbox cannot run.
        """
        answer = await self._ask(path, backbone_config, canonical, wants_tensors=False)
        if answer["error_code"] is not None:
            raise _ERROR_CLASSES[answer["error_code"]](answer["error_message"])
        return AdapterManifest.from_dict(answer["manifest"])

    async def report(self, path: str, backbone_config: str | None = None) -> ValidationReport:
        """Return everything about the adapter at `path`; only a sandbox that cannot run raises (SandboxError)."""
        started = time.monotonic()
        try:
            answer = await self._ask(path, backbone_config, None, wants_tensors=True)
        except AdapterLimitError as error:
            answer = {"error_code": error.code, "error_message": str(error)}
        manifest = answer.get("manifest")
        return ValidationReport(
            manifest=None if manifest is None else AdapterManifest.from_dict(manifest),
            error_code=answer["error_code"],
            error_message=answer["error_message"],
            tensors=tuple(_tensor(fields) for fields in answer.get("tensors") or ()),
            slot_class=answer.get("slot_class"),
            slot_bytes=answer.get("slot_bytes"),
            base_fingerprint=self._fingerprint,
            seconds=time.monotonic() - started,
        )

    async def _ask(
        self,
        path: str,
        backbone_config: str | None,
        canonical: CanonicalTarget | None,
        *,
        wants_tensors: bool,
    ) -> dict[str, Any]:
        request = {
            "path": path,
            "backbone_config": backbone_config,
            "wants_tensors": wants_tensors,
            "max_canonical_bytes": 0 if canonical is None else canonical.max_bytes,
        }
        async with self._places:
            outcome = await self._run(request, canonical)
        if outcome.status != 0 or outcome.answer is None:
            raise self._abnormal_end(path, outcome)
        return outcome.answer

    async def _run(self, request: dict[str, Any], canonical: CanonicalTarget | None) -> JobOutcome:
        try:
            return await self._run_once(request, canonical)
        except SandboxError:
            if self._is_closed:
                raise
            logger.warning("the sandbox has ended and is started again")
            if canonical is not None:
                # What the first job wrote is half of a file.
                os.ftruncate(canonical.descriptor, 0)
                os.lseek(canonical.descriptor, 0, os.SEEK_SET)
        return await self._run_once(request, canonical)

    async def _run_once(
        self, request: dict[str, Any], canonical: CanonicalTarget | None
    ) -> JobOutcome:
        zygote = await self._get_zygote()
        try:
            async with asyncio.timeout(self._max_seconds):
                return await zygote.run(
                    request, None if canonical is None else canonical.descriptor
                )
        except TimeoutError:
            raise AdapterLimitError(
                f"validating the adapter takes more than the {self._max_seconds:g} s that the server allows"
            ) from None

    def _abnormal_end(self, path: str, outcome: JobOutcome) -> AdapterLimitError:
        answer = outcome.answer or {}
        logger.warning(
            "validating %s: the process %s (%s)", ascii(path), outcome.end, answer.get("defect")
        )
        if answer.get("is_out_of_memory"):
            allowed = self._context["max_memory_bytes"]
            return AdapterLimitError(
                f"validating the adapter takes more than the {allowed} bytes of memory that the server allows"
            )
        return AdapterLimitError(
            f"the adapter cannot be validated: the process that read it {outcome.end}"
        )

    async def _get_zygote(self) -> ZygoteProcess:
        async with self._starting:
            was_there = self._zygote is not None and not self._zygote.is_gone
            try:
                return await self._spawn_and_wait()
            except ZygoteEndedError:
                # One that was there may have ended long ago, unnoticed; one that was started here would end again.
                if not was_there:
                    raise
            return await self._spawn_and_wait()

    async def _spawn_and_wait(self) -> ZygoteProcess:
        zygote = await self._spawn()
        try:
            await zygote.wait_until_ready(_START_SECONDS)
        except SandboxError:
            self._zygote = None
            await zygote.close()
            raise
        return zygote

    async def _spawn(self) -> ZygoteProcess:
        if self._is_closed:
            raise SandboxError("the sandbox is closed")
        if self._zygote is not None and self._zygote.is_gone:
            await self._zygote.close()
            self._zygote = None
        if self._zygote is None:
            self._zygote = await ZygoteProcess.start(self._command, self._context)
        return self._zygote


def _tensor(fields: dict[str, Any]) -> TensorReport:
    return TensorReport(**(fields | {"shape": tuple(fields["shape"])}))
