"""What the serving benchmark measures, in which order, and the adapters that it makes."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoConfig

from shadow_runtime.artifact import base_geometry, load_adapter

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CASES = ["2:1", "4:0", "2:1:prefill"]


@pytest.fixture
def benchmark(monkeypatch):
    """Returns a module of the benchmarks by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


class Recorder:
    """In place of an engine: writes down what it is asked."""

    def __init__(self, name, asked):
        self._name, self._asked = name, asked

    def measure(self, case):
        self._asked.append(("measure", self._name, case))
        return 1.0

    def profile(self, case):
        self._asked.append(("profile", self._name, case))
        return []

    def stop(self):
        self._asked.append(("stop", self._name, None))


@pytest.fixture
def asked(benchmark, monkeypatch, tmp_path):
    """What a run with profiles asks of its engines, in its order."""
    serving, asked = benchmark("serving"), []
    engines = {name: Recorder(name, asked) for name in ("base", "shadow")}
    monkeypatch.setattr(serving, "start", lambda options, field: (engines, {}))
    words = ["--engines", "base,shadow", "--cases", ",".join(CASES), "--repeats", "2"]
    profile = ["--profile", str(tmp_path / "profile"), "--profiled", "shadow"]
    monkeypatch.setattr("sys.argv", ["serving.py", *words, *profile])
    assert serving.main() == 0
    return asked


def test_every_row_is_measured_before_anything_is_profiled(asked):
    # An engine that has been profiled once is slower from then on.
    kinds = [kind for kind, _, _ in asked]
    num_samples = 2 * 2 * len(CASES)
    assert kinds == ["measure"] * num_samples + ["profile"] * len(CASES) + ["stop"] * 2


def test_engines_take_turns_and_the_base_gets_no_adapters(asked):
    first = [(name, case.distinct) for kind, name, case in asked if kind == "measure"][:4]
    assert first == [("base", 0), ("shadow", 1), ("base", 0), ("shadow", 1)]


def test_only_the_wanted_engines_are_profiled(asked):
    assert {name for kind, name, _ in asked if kind == "profile"} == {"shadow"}


@pytest.mark.parametrize("checkpoint_format", ["paper", "peft"])
def test_made_adapters_are_of_the_stated_sizes(benchmark, tmp_path, checkpoint_format):
    shape, adapter = benchmark("shape"), benchmark("random_adapter")
    base = shape.write_shape("0.6b", tmp_path / "base", 3)
    made = adapter.write_adapter(base, tmp_path / "adapter", 1, checkpoint_format)
    manifest = load_adapter(made, base_geometry(AutoConfig.from_pretrained(base))).manifest
    assert manifest.format == checkpoint_format
    assert (manifest.injection_rank, manifest.gate_size) == (adapter.RANK, adapter.GATE)
    spec = manifest.backbone
    assert (spec.num_layers, spec.intermediate_size, spec.num_heads) == (1, adapter.MLP, adapter.HEADS)  # fmt: skip


def test_made_adapters_of_two_seeds_differ(benchmark, tmp_path):
    shape, adapter = benchmark("shape"), benchmark("random_adapter")
    base = shape.write_shape("0.6b", tmp_path / "base", 2)
    geometry = base_geometry(AutoConfig.from_pretrained(base))
    made = [adapter.write_adapter(base, tmp_path / str(seed), seed) for seed in (0, 1)]
    digests = {load_adapter(path, geometry).manifest.digest for path in made}
    assert len(digests) == 2


@pytest.mark.parametrize("is_one_by_one", [False, True])
def test_an_engine_that_does_not_start_leaves_no_other_behind(
    benchmark, monkeypatch, is_one_by_one
):
    serving, asked = benchmark("serving"), []

    class Starting(Recorder):
        def __init__(self, name, _):
            super().__init__(name, asked)

        def wait_until_ready(self):
            if self._name == "lora":
                raise RuntimeError("no memory")
            return 1.0

    monkeypatch.setattr(serving, "Contestant", Starting)
    field = SimpleNamespace(job=lambda name: name)
    options = SimpleNamespace(
        engines=["base", "lora", "shadow"], new_tokens=4, one_by_one=is_one_by_one
    )
    with pytest.raises(RuntimeError, match="no memory"):
        serving.start(options, field)
    started = ["base", "lora"] if is_one_by_one else ["base", "lora", "shadow"]
    assert asked == [("stop", name, None) for name in started]
