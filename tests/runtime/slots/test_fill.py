"""Copies into slots beside running steps: in a thread on a CPU, on a stream of its own on a GPU."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from shadow_runtime.artifact import CanonicalAdapter
from shadow_runtime.config import ShadowConfig
from shadow_runtime.slots.fill import StreamWriter, ThreadWriter
from shadow_runtime.slots.image import SlotImage, build_image, max_image_bytes
from shadow_runtime.slots.layout import ShardPlan
from shadow_runtime.slots.stack import AdapterStacks
from shadow_runtime.slots.table import SlotTable

HIDDEN_SIZE = 16
PLAN = ShardPlan((0, 5), has_backbone=True)
SLEEP_CYCLES = 200_000_000
"""About a tenth of a second on the device: longer than everything that the host does meanwhile."""

Images = dict[str, SlotImage]


@pytest.fixture
def config(make_spec: Callable[..., Any], make_config: Callable[..., ShadowConfig]) -> ShadowConfig:
    return make_config(make_spec(), num_slots=2, max_pinned_adapters=1)


@pytest.fixture
def make_images(
    config: ShadowConfig,
    make_spec: Callable[..., Any],
    make_adapter: Callable[..., CanonicalAdapter],
) -> Callable[[], Images]:
    """Return `make_images()`: three adapters that differ in every tensor, flag and scale."""

    def make() -> Images:
        images = {}
        for seed, name in enumerate("abc"):
            injects = tuple(layer > seed for layer in range(5))
            adapter = make_adapter(make_spec(), seed=seed, scale=seed + 0.5, injects=injects)
            images[name] = build_image(
                adapter, config, PLAN, hidden_size=HIDDEN_SIZE, dtype=torch.float32
            )
        return images

    return make


def content(stacks: AdapterStacks, slot: int) -> dict[str, torch.Tensor]:
    """Return what the device's current stream sees of a slot, copied there and then."""
    seen = {f"boundary.{n}": stacks.boundary[n][slot].clone() for n in stacks.boundary._attributes}
    backbone = stacks.backbones[0]
    seen |= {f"backbone.{n}": backbone[n][slot].clone() for n in backbone._attributes}
    return seen | {"flags": stacks.flags[:, slot].clone(), "scale": stacks.scale[slot].clone()}


def assert_is(seen: dict[str, torch.Tensor], image: SlotImage) -> None:
    expected = {f"boundary.{n}": t for n, t in image.boundary.items()}
    expected |= {f"backbone.{n}": t for n, t in image.backbone.items()}
    expected |= {"flags": image.flags, "scale": torch.tensor(image.scale)}
    assert seen.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(seen[name].cpu(), tensor.cpu()), name


# CPU ---------------------------------------------------------------------------------------------


def test_a_thread_copies_the_whole_image(config: ShadowConfig, make_images: Any) -> None:
    stacks, images = AdapterStacks(config, PLAN, HIDDEN_SIZE, torch.float32), make_images()
    with ThreadPoolExecutor(1) as threads:
        fill = ThreadWriter(stacks, threads).begin(1, images["b"])
        fill.join()
        assert fill.is_done()
    assert_is(content(stacks, 1), images["b"])
    assert not stacks.boundary["up"][0].any()


def test_a_copy_that_has_not_begun_is_taken_over(config: ShadowConfig, make_images: Any) -> None:
    stacks, images = AdapterStacks(config, PLAN, HIDDEN_SIZE, torch.float32), make_images()
    busy = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(busy.wait, 30)
        fill = ThreadWriter(stacks, threads).begin(0, images["a"])
        assert not fill.is_done()
        fill.join()
        assert_is(content(stacks, 0), images["a"])
        busy.set()


def test_a_threads_error_reaches_who_joins(config: ShadowConfig, make_images: Any) -> None:
    stacks, images = AdapterStacks(config, PLAN, HIDDEN_SIZE, torch.float32), make_images()
    broken = dataclasses.replace(images["a"], boundary={"up": torch.zeros(1)})
    with ThreadPoolExecutor(1) as threads:
        fill = ThreadWriter(stacks, threads).begin(0, broken)
        while not fill.is_done():
            pass
        with pytest.raises(ValueError, match="does not fit"):
            fill.join()


# GPU ---------------------------------------------------------------------------------------------


@pytest.fixture
def device_stacks(config: ShadowConfig) -> AdapterStacks:
    return AdapterStacks(config, PLAN, HIDDEN_SIZE, torch.float32).cuda()


@pytest.fixture
def table(config: ShadowConfig, device_stacks: AdapterStacks) -> Iterator[SlotTable]:
    num_bytes = max_image_bytes(config, PLAN, HIDDEN_SIZE, torch.float32)
    with ThreadPoolExecutor(2) as threads:
        yield SlotTable(
            config, StreamWriter(device_stacks, torch.device("cuda", 0), num_bytes, threads)
        )


def wait_for_copier(table: SlotTable) -> None:
    """Wait until the host has given the device everything that was begun."""
    table._writer._copier.submit(lambda: None).result()


def wait_until_resident(table: SlotTable, digest: str, image: SlotImage) -> int:
    wait_for_copier(table)
    torch.cuda.synchronize()
    assert table.prefetch(digest, image) is True
    return table.resident[digest]


@pytest.mark.gpu
def test_a_stream_copies_the_whole_image(
    table: SlotTable, device_stacks: AdapterStacks, make_images: Any
) -> None:
    images = make_images()
    for name in "ab":
        assert table.prefetch(name, images[name]) is None
    for name in "ab":
        slot = wait_until_resident(table, name, images[name])
        assert_is(content(device_stacks, slot), images[name])


@pytest.mark.gpu
def test_a_copy_never_overtakes_a_step_that_reads_the_slot(
    table: SlotTable, device_stacks: AdapterStacks, make_images: Any
) -> None:
    images = make_images()
    table.begin_step("ab")
    slots = {name: table.ensure(name, images[name]) for name in "ab"}
    # The device is behind: the step's reading is queued, and its adapter is released meanwhile.
    torch.cuda._sleep(SLEEP_CYCLES)
    seen = content(device_stacks, slots["a"])
    table.release("a")
    assert table.prefetch("c", images["c"]) is None
    assert table.prefetch("c", images["c"]) is None, "the copy must wait for the step"
    assert_is(seen, images["a"])
    assert wait_until_resident(table, "c", images["c"]) == slots["a"]
    assert_is(content(device_stacks, slots["a"]), images["c"])


@pytest.mark.gpu
def test_a_step_that_needs_the_adapter_waits_on_the_device_not_on_the_host(
    table: SlotTable, device_stacks: AdapterStacks, make_images: Any
) -> None:
    images = make_images()
    with torch.cuda.stream(table._writer._stream):
        torch.cuda._sleep(SLEEP_CYCLES)
    assert table.prefetch("a", images["a"]) is None
    table.begin_step("a")
    slot = table.ensure("a", images["a"])
    assert not table._writer._stream.query(), "the host must not have waited"
    assert_is(content(device_stacks, slot), images["a"])
    assert table.resident == {"a": slot}


@pytest.mark.gpu
def test_steps_of_other_adapters_do_not_wait_for_a_copy(
    table: SlotTable, device_stacks: AdapterStacks, make_images: Any
) -> None:
    images = make_images()
    table.begin_step("a")
    slot = table.ensure("a", images["a"])
    torch.cuda.synchronize()
    with torch.cuda.stream(table._writer._stream):
        torch.cuda._sleep(10 * SLEEP_CYCLES)
    assert table.prefetch("b", images["b"]) is None
    table.begin_step("a")
    assert table.ensure("a", images["a"]) == slot
    assert_is(content(device_stacks, slot), images["a"])  # reads back, so the step is over
    assert not table._writer._stream.query()
    assert table.prefetch("b", images["b"]) is None
    torch.cuda.synchronize()


@pytest.mark.gpu
def test_an_image_may_change_once_the_host_has_copied_it(
    table: SlotTable, device_stacks: AdapterStacks, make_images: Any
) -> None:
    images, expected = make_images(), make_images()
    with torch.cuda.stream(table._writer._stream):
        torch.cuda._sleep(SLEEP_CYCLES)
    assert table.prefetch("a", images["a"]) is None
    wait_for_copier(table)
    assert not table._writer._stream.query(), "the device must not have read it yet"
    images["a"].memory.fill_(7)
    torch.cuda.synchronize()
    (slot,) = table._pools[0].filling.values()
    assert_is(content(device_stacks, slot), expected["a"])


@pytest.mark.gpu
def test_a_buffer_is_written_again_only_when_the_device_has_read_it(
    table: SlotTable, device_stacks: AdapterStacks, make_images: Any
) -> None:
    images, writer = make_images(), table._writer
    with torch.cuda.stream(writer._stream):
        torch.cuda._sleep(SLEEP_CYCLES)
    fills = [writer.begin(slot, images[name]) for slot, name in ((0, "a"), (1, "b"))]
    wait_for_copier(table)
    assert not writer._stream.query(), "the device must not have read them yet"
    writer.write(1, images["c"])
    for fill in fills:
        fill.join()
    torch.cuda.synchronize()
    assert_is(content(device_stacks, 0), images["a"])


def test_an_image_can_be_moved(make_images: Any) -> None:
    image = make_images()["a"]
    other = torch.zeros(image.memory.numel() + 5, dtype=torch.uint8)
    other[: image.memory.numel()] = image.memory
    moved = image.at(other)
    assert_is(
        {f"boundary.{n}": t for n, t in moved.boundary.items()}
        | {f"backbone.{n}": t for n, t in moved.backbone.items()}
        | {"flags": moved.flags, "scale": torch.tensor(moved.scale)},
        image,
    )
    other.zero_()
    assert not moved.boundary["up"].any()
    assert image.boundary["up"].any()
