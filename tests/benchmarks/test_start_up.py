"""What the start-up benchmark reads of an engine's log and reports of its starts."""

import importlib
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/start_up.py"

LOG = """12:00:01 vllm.a Model loading took 15.3 GiB memory and 3.250000 seconds
12:00:09 vllm.b Dynamo bytecode transform time: 7.50 s
12:00:30 vllm.c torch.compile took 29.00 s in total
12:00:33 vllm.d Initial profiling/warmup run took 2.25 s
12:01:00 vllm.e Graph capturing finished in 6 secs, took 0.5 GiB
12:01:09 vllm.e Graph capturing finished in 7 secs, took 0.5 GiB
12:01:10 vllm.f init engine (profile, create kv cache, warmup model) took 51.50 s
"""


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("start_up")


def test_phases_are_read_from_the_log_and_repeated_ones_added_up(tool):
    assert tool.read_phases(LOG) == {
        "weights": 3.25,
        "trace": 7.5,
        "compile": 29.0,
        "first_run": 2.25,
        "graphs": 13.0,
        "engine": 51.5,
    }


def test_a_start_is_compared_with_the_base_of_the_same_caches(tool):
    starts = [
        tool.Start("base", "cold", 100.0, {}),
        tool.Start("base", "warm", 40.0, {}),
        tool.Start("shadow", "cold", 125.0, {}),
        tool.Start("shadow", "warm", 42.0, {}),
    ]
    rows = tool.report(starts)["rows"]
    assert [row["ratio_base"] for row in rows] == [1.0, 1.0, 1.25, 1.05]


def test_without_a_base_there_is_no_ratio(tool):
    assert "ratio_base" not in tool.report([tool.Start("shadow", "cold", 9.0, {})])["rows"][0]


def test_the_log_of_an_earlier_start_is_not_read_again(tool, tmp_path):
    log = tmp_path / "base-cold.log"
    log.write_text(LOG)
    variables = tool._log_to(log)
    assert not log.exists()
    handlers = json.loads(Path(variables["VLLM_LOGGING_CONFIG_PATH"]).read_text())["handlers"]
    assert handlers["file"]["filename"] == str(log)


@pytest.mark.parametrize(("caches", "is_kept"), [("cold", False), ("warm", True)])
def test_a_cold_start_finds_nothing_compiled(tool, tmp_path, monkeypatch, caches, is_kept):
    found = []

    class Engine:
        def __init__(self, job, new_tokens):
            found.append(compiled.exists())
            Path(json.loads(log_settings(job))["handlers"]["file"]["filename"]).write_text(LOG)

        def wait_until_ready(self):
            return 7.0

        def stop(self):
            found.append("stopped")

    def log_settings(job):
        return Path(job.environment["VLLM_LOGGING_CONFIG_PATH"]).read_text()

    monkeypatch.setattr(tool, "Contestant", Engine)
    monkeypatch.setattr(tool.sys, "argv", ["start_up.py", "--work", str(tmp_path)])
    starter = tool.Starter(tool.parse(), tmp_path)
    compiled = tmp_path / "caches-base" / "vllm" / "compiled"
    compiled.mkdir(parents=True)
    start = starter.start("base", caches)
    assert (start.seconds, start.caches, start.phases["weights"]) == (7.0, caches, 3.25)
    assert found == [is_kept, "stopped"]


def test_a_warm_start_without_a_cold_one_is_refused(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "Contestant", None)
    monkeypatch.setattr(tool.sys, "argv", ["start_up.py", "--caches", "warm"])
    with pytest.raises(SystemExit, match="no cold start of shadow"):
        tool.Starter(tool.parse(), tmp_path).start("shadow", "warm")


def test_other_caches_are_refused(tool, monkeypatch, capsys):
    monkeypatch.setattr(tool.sys, "argv", ["start_up.py", "--caches", "hot"])
    with pytest.raises(SystemExit):
        tool.parse()
    assert "invalid choice: 'hot'" in capsys.readouterr().err
