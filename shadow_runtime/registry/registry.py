"""Names, leases and drains: the one place that decides which adapter a new request gets.

Runs in: API process.

    load ──> RESIDENT ──(unload, or another digest under the name)──> DRAINING
    DRAINING ──(last lease released)──> retired, or FAILED when the engine refuses
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

from shadow_runtime.errors import AdapterExistsError, AdapterNotFoundError
from shadow_runtime.registry.entry import (
    AdapterEntry,
    AdapterHandle,
    AdapterLoader,
    AdapterState,
    LoadOutcome,
)
from shadow_runtime.registry.lease import Lease
from shadow_runtime.registry.name import is_adapter_name

logger = logging.getLogger(__name__)

T = TypeVar("T")


class AdapterRegistry:
    """Binds names to loaded adapters and keeps every adapter that a request still uses.

    Invariants (`check_integrity`):
        A name is bound to at most one RESIDENT entry, and only RESIDENT entries can be leased.
        An entry with leases is never retired: no digest is unloaded under a running request.
        A digest leaves the engine exactly when its last entry retires, whatever names share it.
        A DRAINING entry without leases has a retirement under way.

    Ownership: one event loop; `lease` and releases are synchronous on it. Engine calls run one at a
    time, so an unload of a digest never overtakes a load of the same digest; that also bounds the
    host memory that validation takes.

    Failure: a load that fails, or whose caller goes away, leaves the old binding or the new one.
    """

    def __init__(self, loader: AdapterLoader) -> None:
        self._loader = loader
        self._generations = itertools.count(1)
        self._resident: dict[str, AdapterEntry] = {}
        self._by_key: dict[str, AdapterEntry] = {}
        self._retiring: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._engine_lock = asyncio.Lock()

    async def load(
        self, name: str, path: str, backbone_config: str | None = None, *, can_replace: bool = True
    ) -> LoadOutcome:
        """Load the adapter at `path` and bind `name` to it.

        Loading the bytes that the name already has changes nothing. Other bytes replace it: new
        requests get the new adapter, running ones finish on the old one, which then leaves the
        engine.

        Raises:
            ValueError: `name` is not an adapter name.
            AdapterExistsError: the name is bound to other bytes and `can_replace` is False.
            ShadowError: what the engine says about the adapter.
        """
        if not is_adapter_name(name):
            raise ValueError(f"not an adapter name: {name!r}")
        # Shielded: a caller that goes away must not leave in the engine what no entry knows.
        return await asyncio.shield(
            self._spawn(self._load(name, path, backbone_config, can_replace))
        )

    async def unload(self, name: str, *, wait_seconds: float) -> AdapterEntry:
        """Take `name` from new requests at once, then wait for its leases, at most `wait_seconds`.

        Returns:
            The entry; its `settled` event tells whether it has left the engine within the wait.

        Raises:
            AdapterNotFoundError: no entry has that name.
            Exception: the engine's, when it could not remove the adapter; the entry is FAILED then.
        """
        entry = self.get(name)
        if entry.state is AdapterState.RESIDENT:
            del self._resident[name]
        if entry.state is not AdapterState.DRAINING:
            self._drain(entry)
        try:
            async with asyncio.timeout(wait_seconds):
                await entry.settled.wait()
        except TimeoutError:
            return entry
        if entry.failure is not None:
            raise entry.failure
        return entry

    def lease(self, name: str) -> Lease:
        """Pin the adapter that `name` means now.

        Raises:
            AdapterNotFoundError: the name answers no new requests.
        """
        entry = self._resident.get(name)
        if entry is None:
            raise AdapterNotFoundError(f"The adapter '{name}' does not exist.")
        entry.num_leases += 1
        return Lease(entry, self._release)

    def has(self, name: str) -> bool:
        """Return whether `name` answers new requests."""
        return name in self._resident

    def get(self, name: str) -> AdapterEntry:
        """Return the entry of `name`: the resident one, else the newest that is draining or failed.

        Raises:
            AdapterNotFoundError: no entry has that name.
        """
        if name in self._resident:
            return self._resident[name]
        for entry in reversed(self._by_key.values()):
            if entry.name == name:
                return entry
        raise AdapterNotFoundError(f"The adapter '{name}' does not exist.")

    def find_by_key(self, key: str) -> AdapterEntry | None:
        """Return the entry with this `AdapterEntry.key`, None when it has retired."""
        return self._by_key.get(key)

    def entries(self) -> list[AdapterEntry]:
        """Return every entry, oldest first."""
        return list(self._by_key.values())

    def check_integrity(self) -> None:
        """Raise RuntimeError when an invariant of the class does not hold."""
        for name, entry in self._resident.items():
            if entry.state is not AdapterState.RESIDENT or self._by_key.get(entry.key) is not entry:
                raise RuntimeError(f"'{name}' is bound to an entry that is not resident")
        for entry in self._by_key.values():
            if entry.num_leases < 0:
                raise RuntimeError(f"'{entry.key}' has {entry.num_leases} leases")
            is_bound = self._resident.get(entry.name) is entry
            if is_bound != (entry.state is AdapterState.RESIDENT):
                raise RuntimeError(f"'{entry.key}' is resident without a name")
            is_idle = entry.state is AdapterState.DRAINING and entry.num_leases == 0
            if is_idle != (entry.key in self._retiring):
                raise RuntimeError(f"'{entry.key}' drains, is idle and is not retiring")

    async def _load(
        self, name: str, path: str, backbone_config: str | None, can_replace: bool
    ) -> LoadOutcome:
        async with self._engine_lock:
            handle = await self._loader.load(name, path, backbone_config)
            current = self._resident.get(name)
            if current is not None and current.digest == handle.manifest.digest:
                return LoadOutcome(current, is_new=False)
            if current is not None and not can_replace:
                await self._discard(handle)
                raise AdapterExistsError(f"The adapter '{name}' is loaded from other bytes.")
            entry = self._publish(name, handle)
        if current is not None:
            self._drain(current)
        return LoadOutcome(entry, is_new=True, replaced=current)

    def _publish(self, name: str, handle: AdapterHandle) -> AdapterEntry:
        entry = AdapterEntry(
            name, handle, next(self._generations), int(datetime.now(UTC).timestamp())
        )
        self._by_key[entry.key] = entry
        self._resident[name] = entry
        return entry

    def _drain(self, entry: AdapterEntry) -> None:
        entry.state = AdapterState.DRAINING
        entry.failure = None
        entry.settled.clear()
        self._retire_if_idle(entry)

    def _release(self, entry: AdapterEntry) -> None:
        entry.num_leases -= 1
        if entry.state is AdapterState.DRAINING:
            self._retire_if_idle(entry)

    def _retire_if_idle(self, entry: AdapterEntry) -> None:
        # A DRAINING entry cannot be leased again, so idle once means idle for good.
        if entry.num_leases == 0:
            self._retiring.add(entry.key)
            self._spawn(self._retire(entry))

    async def _retire(self, entry: AdapterEntry) -> None:
        async with self._engine_lock:
            try:
                await self._discard(entry.handle, except_for=entry)
            except Exception as error:
                logger.exception("the engine could not remove adapter '%s'", entry.name)
                entry.failure = error
                entry.state = AdapterState.FAILED
            else:
                del self._by_key[entry.key]
            self._retiring.discard(entry.key)
            entry.settled.set()

    async def _discard(self, handle: AdapterHandle, except_for: AdapterEntry | None = None) -> None:
        digest = handle.manifest.digest
        users = (e for e in self._by_key.values() if e is not except_for)
        # A FAILED entry uses nothing; it only remembers that an unload is owed.
        if not any(e.digest == digest and e.state is not AdapterState.FAILED for e in users):
            await self._loader.unload(handle)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
