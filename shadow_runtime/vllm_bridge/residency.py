"""Which adapters a worker holds and where: the object that vLLM's model runners call for everything adapter.

Runs in: GPU worker, step thread; reading and padding run in one loader thread.

It takes the place of vLLM's `LRUCacheWorkerLoRAManager` (same method names, called by `LoRAModelRunnerMixin` only).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from shadow_runtime.artifact import load_adapter
from shadow_runtime.errors import (
    AdapterExistsError,
    CapacityError,
    DigestMismatchError,
    ShadowError,
)
from shadow_runtime.slots.image import SlotImage, build_image
from shadow_runtime.slots.pool import SlotPool
from shadow_runtime.types import NO_ADAPTER, BaseGeometry
from shadow_runtime.vllm_bridge.request import AdapterSource, adapter_int_id

if TYPE_CHECKING:
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.request import LoRARequest

    from shadow_runtime.vllm_bridge.executor import ShadowExecutor

logger = logging.getLogger(__name__)


class AdapterResidency:
    """Host images, slots and the loader of one worker.

    Invariants (checked by `check_integrity`): (1) every resident digest has a host image; (2) the host images are at
    most `max_host_adapters`; (3) an id belongs to one digest; (4) each class's pool holds its own invariants.

    Thread/process ownership: the step thread owns all fields; the loader thread only returns images.
    Failure behaviour: an adapter that cannot be read leaves everything as it was.
    """

    def __init__(self, executor: ShadowExecutor, base: BaseGeometry) -> None:
        self._executor = executor
        self._base = base
        self._config = executor.config
        self._images: dict[str, SlotImage] = {}
        self._digests: dict[int, str] = {}
        self._dummies: set[int] = set()
        self._staged: dict[str, Future[SlotImage]] = {}
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="shadow-loader")
        self._pools = [
            SlotPool(self._config.first_slot(i), c.num_slots)
            for i, c in enumerate(self._config.slot_classes)
        ]

    # Loading -----------------------------------------------------------------------------------------------------

    def stage(self, source: AdapterSource) -> None:
        """Begin to read an adapter in the loader thread; does nothing when it is already here or on its way.

        A full host tier is refused before anything is read; `find_stage_error` reports it.
        """
        staged = self._staged.get(source.digest)
        has_failed = staged is not None and staged.done() and staged.exception() is not None
        if source.digest in self._images or (staged is not None and not has_failed):
            return
        self._staged.pop(source.digest, None)
        if len(self._images) < self._config.max_host_adapters:
            self._drop_abandoned()
            self._staged[source.digest] = self._loader.submit(self._read, source)
        else:
            refused: Future[SlotImage] = Future()
            refused.set_exception(self._full())
            self._staged[source.digest] = refused

    def _drop_abandoned(self) -> None:
        """Make room among staged images: a load that was given up before it was added would stay for ever."""
        excess = len(self._images) + len(self._staged) + 1 - self._config.max_host_adapters
        finished = [digest for digest, future in self._staged.items() if future.done()]
        for digest in finished[: max(excess, 0)]:
            del self._staged[digest]

    def _full(self) -> CapacityError:
        return CapacityError(
            f"all {self._config.max_host_adapters} places for adapters in host memory are taken"
        )

    def find_stage_error(self, digest: str) -> tuple[str, str] | bool:
        """Return True when a staged adapter is ready, False while it loads, else (error code, message)."""
        future = self._staged.get(digest)
        if future is None:
            # Its error was told to another caller, or it was unloaded or dropped meanwhile: waiting would never end.
            gone = (ShadowError.code, f"{digest} is not being loaded any more; load it again")
            return digest in self._images or gone
        if not future.done():
            return False
        error = future.exception()
        if error is None:
            return True
        del self._staged[digest]
        return (error.code if isinstance(error, ShadowError) else "internal_error", str(error))

    def add_adapter(self, request: LoRARequest) -> bool:
        """Hold an adapter in host memory; vLLM's load call, and its fallback in a step.

        Returns: True when it was not held before.

        Raises:
            ShadowError: it cannot be read, fits no slot class, or the host tier is full.
        """
        if request.lora_int_id in self._dummies:
            return False
        source = AdapterSource.from_uri(request.lora_path)
        known = self._digests.get(request.lora_int_id)
        if known is not None and known != source.digest:
            raise AdapterExistsError(
                f"{source.digest} and {known} share the 31-bit id {request.lora_int_id}"
            )
        if known is not None:
            return False
        if len(self._images) >= self._config.max_host_adapters:
            self._staged.pop(source.digest, None)
            raise self._full()
        image = self._take_staged(source)
        self._images[source.digest] = image
        self._digests[request.lora_int_id] = source.digest
        return True

    def _take_staged(self, source: AdapterSource) -> SlotImage:
        future = self._staged.pop(source.digest, None)
        return self._read(source) if future is None else future.result()

    def _read(self, source: AdapterSource) -> SlotImage:
        config = None if source.backbone_config is None else Path(source.backbone_config)
        adapter = load_adapter(
            Path(source.path), self._base, self._config.limits, backbone_config=config
        )
        if adapter.manifest.digest != source.digest:
            raise DigestMismatchError(
                f"the files at {source.path} changed: expected {source.digest}, read {adapter.manifest.digest}"
            )
        return build_image(
            adapter,
            self._config,
            self._executor.plan,
            hidden_size=self._executor.hidden_size,
            dtype=self._executor.dtype,
            pin=self._executor.state.is_cuda,
        )

    def remove_adapter(self, adapter_id: int) -> bool:
        """Free an adapter's slot and host memory; returns False when it was not held."""
        digest = self._digests.pop(adapter_id, None)
        if digest is None:
            return False
        image = self._images.pop(digest)
        self._pools[image.class_index].release(digest)
        return True

    def list_adapters(self) -> set[int]:
        """Return the ids of all held adapters."""
        return set(self._digests)

    def pin_adapter(self, adapter_id: int) -> bool:
        """Keep a held adapter in its slot; returns False when it is not held."""
        digest = self._digests.get(adapter_id)
        if digest is None:
            return False
        self._ensure_slot(digest, keep=())
        self._pools[self._images[digest].class_index].pin(digest)
        return True

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
            self.add_adapter(request)
        ids = np.asarray(mapping.index_mapping, dtype=np.int64)
        self._executor.begin_step(self._token_slots(ids))

    def _token_slots(self, ids: np.ndarray) -> np.ndarray:
        """Return (num_tokens,) int32 slots of (num_tokens,) int64 adapter ids, 0 meaning none."""
        active = np.unique(ids[ids > 0])
        slots = np.full(ids.shape, NO_ADAPTER, dtype=np.int32)
        if active.size == 0:
            return slots
        keep = {self._digests[i] for i in active.tolist() if i in self._digests}
        table = np.array([self._slot_of(i, keep) for i in active.tolist()], dtype=np.int32)
        has_adapter = ids > 0
        slots[has_adapter] = table[np.searchsorted(active, ids[has_adapter])]
        return slots

    def _slot_of(self, adapter_id: int, keep: set[str]) -> int:
        if adapter_id in self._dummies:
            # vLLM numbers its warm-up adapters from 1; they only run, whatever the slot holds.
            return (adapter_id - 1) % self._config.num_slots
        digest = self._digests.get(adapter_id)
        if digest is None:
            raise RuntimeError(
                f"step has tokens of adapter id {adapter_id}, which no request of the step names"
            )
        return self._ensure_slot(digest, keep)

    def _ensure_slot(self, digest: str, keep: Any) -> int:
        image = self._images[digest]
        return self._pools[image.class_index].ensure(
            digest, keep, lambda slot: self._write(slot, image)
        )

    def _write(self, slot: int, image: SlotImage) -> None:
        with gpu_sync_allowed():
            self._executor.stacks.write(slot, image)

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
        resident = {d: s for pool in self._pools for d, s in pool.resident.items()}
        return {
            "active": True,
            "num_slots": self._config.num_slots,
            "num_free_slots": sum(pool.num_free for pool in self._pools),
            "resident": resident,
            "held": sorted(self._images),
            "host_bytes": sum(image.num_bytes for image in self._images.values()),
        }

    def check_integrity(self) -> None:
        """Raise RuntimeError when an invariant of the class does not hold."""
        for pool in self._pools:
            pool.check_integrity()
            if not pool.resident.keys() <= self._images.keys():
                raise RuntimeError("a resident adapter has no host image")
        if len(self._images) > self._config.max_host_adapters:
            raise RuntimeError("more host images than max_host_adapters")
        if sorted(self._digests.values()) != sorted(self._images):
            raise RuntimeError("ids and host images disagree")
        for adapter_id, digest in self._digests.items():
            if adapter_id != adapter_int_id(digest):
                raise RuntimeError(f"id {adapter_id} is not that of {digest}")


def find_residency(runner: object) -> AdapterResidency | None:
    """Return the residency of a model runner, or None before its model is loaded."""
    found = getattr(runner, "lora_manager", None)
    return found if isinstance(found, AdapterResidency) else None
