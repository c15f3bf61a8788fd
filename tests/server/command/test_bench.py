"""`shadowserve bench` over a server with the fake engine."""

import json

import pytest

QUICK = ("--seconds", "0.1", "--rounds", "1", "--concurrency", "2", "--distinct", "1,2")


@pytest.fixture
def loaded(command_server, shell):
    """Two adapters of the tenant."""
    _, root, _ = command_server
    for name in ("bench-a", "bench-b"):
        folder = root / name
        folder.mkdir(exist_ok=True)
        (folder / "adapter.txt").write_text(f"weights of {name}")
        assert shell("adapters", "load", name, "--server-path", name)[0] == 0
    return ["bench-a", "bench-b"]


def test_a_table_of_ratios_to_the_base(shell, loaded):
    status, out, err = shell("bench", *loaded, *QUICK)
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["case", "requests"]
    assert [line.split()[0] for line in lines[1:]] == [
        *("mixed/base", "mixed/distinct-1", "mixed/distinct-2"),
    ]
    assert "over the bare base's" in err


def test_json_has_the_keys_of_vllms_benchmark(shell, loaded, tmp_path):
    path = tmp_path / "report.json"
    _, out, _ = shell("bench", *loaded, *QUICK, "--json", "--out", path)
    report = json.loads(out)
    assert report == json.loads(path.read_text())
    for case in report["cases"]:
        assert case["failed"] == 0
        assert {
            *("duration", "completed", "request_throughput", "output_throughput"),
            *("total_input_tokens", "total_output_tokens", "max_concurrency"),
            *("mean_ttft_ms", "median_tpot_ms", "p99_itl_ms", "std_e2el_ms"),
        } <= case.keys()


def test_what_the_server_lacks_is_said(shell, loaded):
    status, _, err = shell("bench", *loaded, *QUICK[:-1], "1,64")
    assert status == 0
    assert "the server has 2 adapters: nothing with 64" in err


def test_a_plot_is_a_png(shell, loaded, tmp_path):
    path = tmp_path / "plot.png"
    assert shell("bench", *loaded, *QUICK, "--plot", path)[0] == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "words",
    [("--distinct", "two"), ("--distinct", "0"), ("--shape", "odd"), ("--popularity", "odd")],
)
def test_wrong_options_are_refused(shell, words):
    assert shell("bench", *words)[0] == 2


def test_overflow_without_an_admins_key_is_said(shell, loaded):
    status, _, err = shell("bench", *loaded, *QUICK, "--overflow")
    assert status == 0
    assert "needs an admin's key" in err


def test_a_report_that_cannot_be_written_is_told_first(shell, tmp_path, monkeypatch):
    monkeypatch.setattr("shadow_server.command.bench._measure", None)
    for flag in ("--out", "--plot"):
        assert shell("bench", flag, tmp_path / "none" / "file")[0] == 2
    monkeypatch.setattr("shadow_server.command.bench.find_spec", lambda name: None)
    assert shell("bench", "--plot", tmp_path / "plot.png")[0] == 2


def test_a_case_without_answers_is_a_failure(shell, loaded):
    status, out, err = shell("bench", "nobody", *QUICK[:-1], "1")
    assert status == 1
    assert out.splitlines()[-1].split()[-5:] == ["-"] * 5
    assert "mixed/distinct-1: " in err
    assert "AdapterNotFoundError" in err


def test_churn_that_is_refused_is_said(shell, loaded):
    status, _, err = shell("bench", "bench-a", *QUICK[:-1], "1", "--churn", "no-such-folder")
    assert status == 0
    assert "mixed/distinct-1+churn: 0 publishes: " in err


def test_an_overflow_that_needs_more_adapters_is_said(shell, loaded, monkeypatch):
    monkeypatch.setattr("shadow_server.command.bench._num_slots", lambda client: 4)
    status, _, err = shell("bench", *loaded, *QUICK, "--overflow")
    assert status == 0
    assert "the server has 2 adapters: nothing with 8" in err


def test_who_drains_is_not_asked():
    from dataclasses import replace

    from shadow_client.testing import MockServer
    from shadow_server.command.bench import _listed

    server = MockServer()
    for name in ("a", "b"):
        server.publish(name)
    with server.client() as client:
        new, other = client.adapters.list()
        old, gone = replace(new, state="DRAINING"), replace(other, name="c", state="DRAINING")
        client.adapters.list = lambda: (old, new, other, gone)
        assert _listed(client) == ["a", "b"]
