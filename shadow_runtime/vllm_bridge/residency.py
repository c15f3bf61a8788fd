"""Which adapters a worker holds and where: the object that vLLM's model runners call for everything adapter.

Runs in: GPU worker, step thread; reading and padding run in loader threads.

It takes the place of vLLM's `LRUCacheWorkerLoRAManager` (same method names, called by `LoRAModelRunnerMixin` only). The
methods that answer RPCs return at once: what takes long is begun, and asked for again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from shadow_runtime.errors import (
    AdapterExistsError,
    AdapterNotFoundError,
    CapacityError,
    ShadowError,
)
from shadow_runtime.slots.fill import SlotWriter, StreamWriter, ThreadWriter
from shadow_runtime.slots.image import SlotImage, max_image_bytes
from shadow_runtime.slots.table import SlotTable
from shadow_runtime.types import NO_ADAPTER, BaseGeometry
from shadow_runtime.vllm_bridge.image_loader import ImageLoader
from shadow_runtime.vllm_bridge.request import AdapterSource, adapter_int_id

if TYPE_CHECKING:
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.request import LoRARequest

    from shadow_runtime.vllm_bridge.executor import ShadowExecutor

logger = logging.getLogger(__name__)

Outcome = bool | None | tuple[str, str]
"""What an operation that takes time has reached: True done, False refused, None under way, (error code, message)."""


class AdapterResidency:
    """Host images, slots and the loader of one worker.

    Invariants (checked by `check_integrity`): (1) every resident digest has a host image; (2) the host images are at
    most `max_host_adapters`; (3) an id belongs to one digest; (4) the slot table holds its own invariants.

    Thread/process ownership: the step thread owns all fields.
    Failure behaviour: an adapter that cannot be read leaves everything as it was.
    """

    def __init__(self, executor: ShadowExecutor, base: BaseGeometry) -> None:
        self._executor = executor
        self._config = executor.config
        self._images: dict[str, SlotImage] = {}
        self._digests: dict[int, str] = {}
        self._dummies: set[int] = set()
        self._loader = ImageLoader(executor, base)
        self._slots = SlotTable(self._config, self._make_writer())

    def _make_writer(self) -> SlotWriter:
        executor = self._executor
        stacks, device = executor.stacks, executor.state.device
        if device.type == "cuda":
            num_bytes = max_image_bytes(
                self._config, executor.plan, executor.hidden_size, executor.dtype
            )
            return StreamWriter(stacks, device, num_bytes, self._loader.readers, gpu_sync_allowed)
        return ThreadWriter(stacks, self._loader.threads)

    # Host memory -------------------------------------------------------------------------------------------------

    def load(self, source: AdapterSource) -> Outcome:
        """Hold an adapter in host memory; ask again while it is under way. A full host tier is refused unread."""
        digest = source.digest
        if digest in self._images:
            return True
        if digest not in self._loader.staged:
            if len(self._images) >= self._config.max_host_adapters:
                return _refusal(self._full())
            self._drop_abandoned()
            self._loader.begin(source)
            return None
        if not self._loader.is_ready(digest):
            return None
        try:
            self._hold(source)
        except Exception as error:
            # Whatever a loader thread met is the answer to the one who asked; the engine goes on.
            return _refusal(error)
        return True

    def _drop_abandoned(self) -> None:
        """Make room among what was read: a load that was given up before it was held would stay for ever."""
        excess = len(self._images) + len(self._loader.staged) + 1 - self._config.max_host_adapters
        ready = [digest for digest in sorted(self._loader.staged) if self._loader.is_ready(digest)]
        for digest in ready[: max(excess, 0)]:
            self._loader.drop(digest)

    def _full(self) -> CapacityError:
        return CapacityError(
            f"all {self._config.max_host_adapters} places for adapters in host memory are taken"
        )

    def _hold(self, source: AdapterSource) -> None:
        adapter_id = adapter_int_id(source.digest)
        known = self._digests.get(adapter_id, source.digest)
        try:
            if known != source.digest:
                raise AdapterExistsError(
                    f"{source.digest} and {known} share the 31-bit id {adapter_id}"
                )
            if len(self._images) >= self._config.max_host_adapters:
                raise self._full()
            image = self._loader.take(source)
        finally:
            self._loader.drop(source.digest)
        self._images[source.digest] = image
        self._digests[adapter_id] = source.digest

    def unload(self, digest: str) -> bool:
        """Free an adapter's slot and host memory; returns False when it was not held."""
        self._loader.drop(digest)
        self._slots.release(digest)
        is_held = self._images.pop(digest, None) is not None
        if is_held:
            del self._digests[adapter_int_id(digest)]
        return is_held

    # Slots, beside the steps -------------------------------------------------------------------------------------

    def prefetch(self, digest: str) -> Outcome:
        """Copy a held adapter into a free or idle slot; False when there is none or it is not held."""
        image = self._images.get(digest)
        if image is None:
            return False
        return self._slots.prefetch(digest, image)

    def pin(self, digest: str) -> Outcome:
        """Keep a held adapter in a slot; ask again while its copy is under way."""
        image = self._images.get(digest)
        if image is None:
            return _refusal(AdapterNotFoundError(f"{digest} is not held in host memory"))
        try:
            return self._slots.pin(digest, image)
        except ShadowError as error:
            return _refusal(error)

    def unpin(self, digest: str) -> None:
        """Undo `pin`; unknown digests are ignored."""
        self._slots.unpin(digest)

    def release_slot(self, digest: str) -> None:
        """Free the slot of an adapter that no running request uses, unless it is pinned; its image stays."""
        if digest not in self._slots.pinned:
            self._slots.release(digest)

    # What vLLM calls ---------------------------------------------------------------------------------------------

    def add_adapter(self, request: LoRARequest) -> bool:
        """Hold an adapter in host memory; vLLM's load call, and its fallback in a step, which waits for the reading.

        Returns: True when it was not held before.

        Raises:
            ShadowError: it cannot be read, fits no slot class, or the host tier is full.
        """
        if request.lora_int_id in self._dummies:
            return False
        source = AdapterSource.from_uri(request.lora_path)
        if source.digest in self._images:
            return False
        self._hold(source)
        return True

    def remove_adapter(self, adapter_id: int) -> bool:
        """Free an adapter's slot and host memory; returns False when it was not held."""
        digest = self._digests.get(adapter_id)
        return digest is not None and self.unload(digest)

    def list_adapters(self) -> set[int]:
        """Return the ids of all held adapters."""
        return set(self._digests)

    def pin_adapter(self, adapter_id: int) -> bool:
        """Begin to keep a held adapter in a slot; returns False when it is not held or the pins are used up."""
        digest = self._digests.get(adapter_id)
        return digest is not None and not isinstance(self.pin(digest), tuple)

    # The step ----------------------------------------------------------------------------------------------------

    def set_active_adapters(self, requests: set[LoRARequest], mapping: LoRAMapping | None) -> None:
        """Make the step's adapters resident and tell the executor which token belongs to which slot.

        Raises:
            RuntimeError: the mapping names an id that no request of the step has; answering those tokens as the bare
                base would be wrong.
        """
        if mapping is None:
            return
        for request in requests:
            # A request's name is its digest. Its path is parsed only when that is not held: 6 us each, in every step.
            if self._digests.get(request.lora_int_id) != request.lora_name:
                self.add_adapter(request)
        ids = np.asarray(mapping.index_mapping, dtype=np.int64)
        self._executor.begin_step(self._token_slots(ids))

    def _token_slots(self, ids: np.ndarray) -> np.ndarray:
        """Return (num_tokens,) int32 slots of (num_tokens,) int64 adapter ids, 0 meaning none."""
        active = np.unique(ids[ids > 0])
        slots = np.full(ids.shape, NO_ADAPTER, dtype=np.int32)
        self._slots.begin_step([self._digests[i] for i in active.tolist() if i in self._digests])
        if active.size == 0:
            return slots
        table = np.array([self._slot_of(i) for i in active.tolist()], dtype=np.int32)
        has_adapter = ids > 0
        slots[has_adapter] = table[np.searchsorted(active, ids[has_adapter])]
        return slots

    def _slot_of(self, adapter_id: int) -> int:
        if adapter_id in self._dummies:
            # vLLM numbers its warm-up adapters from 1; they only run, whatever the slot holds.
            return (adapter_id - 1) % self._config.num_slots
        digest = self._digests.get(adapter_id)
        if digest is None:
            raise RuntimeError(
                f"step has tokens of adapter id {adapter_id}, which no request of the step names"
            )
        return self._slots.ensure(digest, self._images[digest])

    # Warm-up -----------------------------------------------------------------------------------------------------

    @contextmanager
    def dummy_lora_cache(self) -> Iterator[None]:
        """Enter vLLM's warm-up; nothing is cached for it."""
        yield

    def get_dummy_lora_warmup_rank(self, default_rank: int) -> int:
        """Return the rank of vLLM's warm-up adapters, which have no weights here."""
        return default_rank

    def add_dummy_lora(self, request: LoRARequest, rank: int) -> bool:
        """Accept one of vLLM's warm-up adapters, so that profiling and capture run the shadow path."""
        self._dummies.add(request.lora_int_id)
        return True

    def remove_all_adapters(self) -> None:
        """Forget the warm-up adapters only: vLLM calls this after every dummy run, also with real adapters loaded."""
        self._dummies.clear()

    def supports_tower_connector_lora(self) -> bool:
        """Multimodal towers carry no shadow path."""
        return False

    # Introspection -----------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what `EngineControl.worker_status` shows of this worker."""
        self._slots.settle()
        return {
            "active": True,
            "num_slots": self._config.num_slots,
            "num_free_slots": self._slots.num_free,
            "resident": self._slots.resident,
            "pinned": sorted(self._slots.pinned),
            "held": sorted(self._images),
            "host_bytes": sum(image.num_bytes for image in self._images.values()),
        }

    def check_integrity(self) -> None:
        """Raise RuntimeError when an invariant of the class does not hold."""
        self._slots.check_integrity()
        if not self._slots.resident.keys() <= self._images.keys():
            raise RuntimeError("a resident adapter has no host image")
        if len(self._images) > self._config.max_host_adapters:
            raise RuntimeError("more host images than max_host_adapters")
        if sorted(self._digests.values()) != sorted(self._images):
            raise RuntimeError("ids and host images disagree")
        for adapter_id, digest in self._digests.items():
            if adapter_id != adapter_int_id(digest):
                raise RuntimeError(f"id {adapter_id} is not that of {digest}")


def _refusal(error: Exception) -> tuple[str, str]:
    if not isinstance(error, ShadowError):
        logger.error("An adapter could not be loaded", exc_info=error)
        return ("internal_error", f"{type(error).__name__}: {error}")
    return (error.code, str(error))


def find_residency(runner: object) -> AdapterResidency | None:
    """Return the residency of a model runner, or None before its model is loaded."""
    found = getattr(runner, "lora_manager", None)
    return found if isinstance(found, AdapterResidency) else None
