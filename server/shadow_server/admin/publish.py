"""Publishing: from a request's files to a version that answers, with or without progress events.

Runs in: API process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response, StreamingResponse

from shadow_server.admin.describe import describe_entry
from shadow_server.admin.progress import ProgressFeed, progress_stream
from shadow_server.admin.source import Source
from shadow_server.engine import (
    AdapterName,
    AdapterRegistry,
    CatalogQuota,
    Progress,
    PublishOutcome,
    StagedArtifact,
    runtime_errors,
)
from shadow_server.errors import error_body, rule_of, rule_of_status, scrub
from shadow_server.tenancy.identity import Identity
from shadow_server.tenancy.quota import quota_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Copying gigabytes must not take the threads that everything else on this loop borrows, and a hub
# that is slow must not hold up directories and uploads.
_MAX_COPIES = 4
_MAX_DOWNLOADS = 4


@dataclass(frozen=True, slots=True)
class Publication:
    """One publish that was asked for.

    Attributes:
        name: the name to bind.
        source: its files.
        identity: who asks.
        can_replace, wait: see `PublishAdapter`.
    """

    name: AdapterName
    source: Source
    identity: Identity
    can_replace: bool = True
    wait: bool = True


class Publisher:
    """Runs publishes to their end, whoever is still there to hear of it."""

    def __init__(self, adapters: AdapterRegistry) -> None:
        self._adapters = adapters
        self._copies = ThreadPoolExecutor(_MAX_COPIES, "adapter-copy")
        self._downloads = ThreadPoolExecutor(_MAX_DOWNLOADS, "adapter-download")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._turns: dict[str, asyncio.Lock] = {}

    async def answer(self, publication: Publication, *, stream: bool) -> Response:
        """Publish and answer: one JSON object, or the events on the way to it."""
        if not stream:
            outcome = await self.publish(publication)
            return JSONResponse(self._describe(publication, outcome), _status(publication, outcome))
        feed = ProgressFeed()
        work = self._spawn(self._publish_and_describe(publication, feed.tell))
        return StreamingResponse(
            progress_stream(feed, work, _describe_error),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )

    async def publish(self, publication: Publication) -> PublishOutcome:
        """Publish; a caller that is cancelled does not cancel it.

        Raises:
            ShadowError: why it was refused; nothing is changed then.
        """
        return await self.finish(self._publish(publication, None))

    async def stage(self, source: Source, progress: Progress | None = None) -> StagedArtifact:
        """Copy a source into the store's staging area, off the event loop."""
        loop = asyncio.get_running_loop()
        threads = self._downloads if source.is_remote else self._copies
        return await loop.run_in_executor(threads, source.stage, progress)

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end, even when the caller is cancelled before."""
        return await asyncio.shield(self._spawn(work))

    async def _publish(self, publication: Publication, progress: Progress | None) -> PublishOutcome:
        staged = await self.stage(publication.source, progress)
        try:
            async with self.room(publication.name, publication.identity):
                return await self._adapters.publish(
                    publication.name,
                    staged,
                    can_replace=publication.can_replace,
                    wait=publication.wait,
                    progress=progress,
                    quota=_quota(publication),
                )
        except BaseException:
            # There may have been no room, and so no publish that uses it up.
            await asyncio.to_thread(staged.discard)
            raise

    @asynccontextmanager
    async def room(
        self, name: AdapterName, identity: Identity, digest: str | None = None
    ) -> AsyncIterator[None]:
        """Keep a tenant within its resident adapters while it loads one: room is made, and its changes take turns.

        Args:
            name: what is published, rolled back or pinned.
            identity: who asks; the quota is of a tenant's own changes.
            digest: what is to be loaded, None for one not known yet.

        Raises:
            QuotaError: nothing of the tenant can leave.
        """
        tenant, most = name.tenant, identity.quotas.max_resident_adapters
        if most is None or tenant != identity.tenant:
            yield
            return
        async with self._turns.setdefault(tenant, asyncio.Lock()):
            # A resident version that is replaced leaves with its last request, and so needs no second place.
            most_now = most + self._is_resident(name)
            if not await self._adapters.make_room(tenant, most_now, digest):
                raise runtime_errors.QuotaError(
                    f"At most {most} of the tenant's adapters are resident at once, and those "
                    "that are cannot leave now: unpin or delete one, or let its requests end."
                )
            yield

    def _is_resident(self, name: AdapterName) -> bool:
        return self._adapters.has(name) and self._adapters.get(name).level != "disk"

    async def _publish_and_describe(
        self, publication: Publication, progress: Progress
    ) -> dict[str, Any]:
        outcome = await self._publish(publication, progress)
        return self._describe(publication, outcome)

    def _describe(self, publication: Publication, outcome: PublishOutcome) -> dict[str, Any]:
        card = describe_entry(outcome.entry, self._adapters, publication.identity)
        if outcome.replaced is not None:
            card["replaced_digest"] = outcome.replaced.digest
        return card

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # Also takes the exception of a task that nobody waits for any more.
        if not task.cancelled() and task.exception() is not None:
            logger.info("Refused: %s", task.exception())


def _quota(publication: Publication) -> CatalogQuota | None:
    # An admin's own limits say nothing about another tenant's.
    identity = publication.identity
    return quota_of(identity) if publication.name.tenant == identity.tenant else None


def _status(publication: Publication, outcome: PublishOutcome) -> int:
    if not outcome.is_new:
        return 200
    return 201 if publication.wait else 202


def _describe_error(error: Exception) -> dict[str, Any]:
    if isinstance(error, runtime_errors.ShadowError):
        return error_body(scrub(str(error)), rule_of(error))
    logger.error("A publish failed", exc_info=error)
    return error_body("The server failed on this request", rule_of_status(500))
