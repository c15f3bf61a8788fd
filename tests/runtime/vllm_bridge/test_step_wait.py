"""How the engine core and its worker wait for one another on a CPU: asleep, and never for a lost notification."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue, SpinCondition

import scheduler_rig
from shadow_runtime.vllm_bridge import step_wait
from shadow_runtime.vllm_bridge.scheduler import make_scheduler

TIMEOUT_SECONDS = 30.0


class Pair:
    """A queue and a thread that reads from it, both ready."""

    def __init__(self, read):
        self.writer = MessageQueue(n_reader=1, n_local_reader=1)
        self.reader = MessageQueue.create_from_handle(self.writer.export_handle(), 0)
        self.cpu_seconds = None
        self._thread = threading.Thread(target=self._run, args=(read,))
        self._thread.start()
        self.writer.wait_until_ready()

    def _run(self, read):
        self.reader.wait_until_ready()
        start = time.thread_time()
        read(self.reader)
        self.cpu_seconds = time.thread_time() - start

    def join(self):
        self._thread.join(TIMEOUT_SECONDS)
        assert not self._thread.is_alive(), "the reader still waits"


@pytest.fixture
def restored(monkeypatch):
    """Undo after the test what it has this process do; the model runs on the CPU, whatever engine is installed."""
    monkeypatch.setattr(SpinCondition, "wait", SpinCondition.wait)
    monkeypatch.setattr(step_wait, "current_platform", SimpleNamespace(is_cpu=lambda: True))


@pytest.fixture
def sleeping(restored):
    """Have this process wait as those of an engine beside a server do."""
    step_wait.wait_without_spinning()
    assert SpinCondition.wait is not step_wait._wait_when_idle


def test_who_waits_for_a_step_uses_no_processor(sleeping):
    received = []
    pair = Pair(lambda queue: received.append(queue.dequeue(TIMEOUT_SECONDS)))
    threading.Event().wait(0.5)
    pair.writer.enqueue("done")
    pair.join()
    assert received == ["done"]
    # Spinning takes all of the half second on an idle machine, asking once a millisecond some 0.02.
    assert pair.cpu_seconds < 0.15


def test_messages_that_follow_at_once_keep_nobody_waiting(sleeping):
    """vLLM drops notifications of messages within a millisecond of each other; each costs a millisecond at most."""
    number = 400
    received = []

    def read(queue):
        for _ in range(number):
            received.append(queue.dequeue(TIMEOUT_SECONDS))

    pair = Pair(read)
    start = time.monotonic()
    for index in range(number):
        # Two are under way, as execute_model and sample_tokens of a step are.
        while len(received) < index - 1:
            time.sleep(0)
            assert time.monotonic() < start + TIMEOUT_SECONDS, f"stuck at message {len(received)}"
        pair.writer.enqueue(index)
    pair.join()
    assert received == list(range(number))


def test_a_reader_can_be_told_to_end(sleeping):
    errors = []

    def read(queue):
        try:
            queue.dequeue(indefinite=True)
        except RuntimeError as error:
            errors.append(str(error))

    pair = Pair(read)
    pair.reader.shutdown()
    pair.join()
    assert errors == ["cancelled"]


def test_engines_that_compute_elsewhere_wait_as_vllm_does(restored, monkeypatch):
    stock = SpinCondition.wait
    monkeypatch.setattr(step_wait, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    step_wait.wait_without_spinning()
    assert SpinCondition.wait is stock


@pytest.mark.parametrize("has_server", [False, True])
def test_the_engine_core_sleeps_beside_a_server_only(restored, library, make_config, has_server):
    config = replace(make_config(), has_server=has_server)
    vllm_config = scheduler_rig.make_vllm_config(library.base_dir, config)
    scheduler_rig.make_scheduler(make_scheduler, vllm_config)
    assert (SpinCondition.wait is step_wait._wait) is has_server


@pytest.mark.parametrize("has_server", [False, True])
def test_the_worker_sleeps_beside_a_server_only(
    restored, make_config, make_bare_worker, has_server
):
    config = replace(make_config(), has_server=has_server)
    make_bare_worker(SimpleNamespace(), {"shadow": config.to_dict()}).load_model()
    assert (SpinCondition.wait is step_wait._wait) is has_server


@pytest.mark.parametrize("additional_config", [{}, None])
def test_a_worker_without_our_settings_gets_as_far_as_its_model(
    restored, make_bare_worker, additional_config
):
    """There `_load_shadow_model` says what is wrong."""
    make_bare_worker(SimpleNamespace(), additional_config).load_model()
    assert SpinCondition.wait is not step_wait._wait
