"""`shadowserve top`: rows from cards and series."""

import json
from dataclasses import replace

import httpx
import pytest

from shadow_client import Client
from shadow_client.testing import MockServer
from shadow_server.cli import main
from shadow_server.command import top
from shadow_server.command.top import Monitor, cells_of, series_name


def series(adapter, num_requests):
    """A histogram in which every first token took 0.1 to 0.2 s."""
    name, label = "shadow_time_to_first_token_seconds", f'adapter="{adapter}"'
    return (
        f'{name}_bucket{{{label},le="0.1"}} 0\n{name}_bucket{{{label},le="0.2"}} {num_requests}\n'
        f'{name}_bucket{{{label},le="+Inf"}} {num_requests}\n{name}_count{{{label}}} {num_requests}\n'
    )


@pytest.fixture
def server():
    """Return a mock server whose `text` is its /metrics."""
    server = MockServer()
    server.publish("quiet")
    server.publish("acme/busy")
    server.text = series("quiet", 1) + series("acme/busy", 10) + series("__base__", 4)
    inner = server.handle

    def handle(request):
        if request.url.path == "/metrics":
            return httpx.Response(200, text=server.text)
        return inner(request)

    server.handle = handle
    return server


def test_the_first_look_has_totals(server):
    rows = Monitor(server.client()).look()
    assert [row.adapter for row in rows] == ["acme/busy", "quiet", "__base__"]
    assert [row.num_requests for row in rows] == [10, 1, 4]
    assert rows[0].requests_per_second is None
    assert rows[0].first_token_p50 == pytest.approx(0.15)
    assert rows[0].first_token_p99 == pytest.approx(0.199)
    assert rows[2].card is None


def test_later_looks_have_what_is_new(server, monkeypatch):
    now = iter([100.0, 104.0])
    monkeypatch.setattr(top.time, "monotonic", lambda: next(now))
    monitor = Monitor(server.client())
    monitor.look()
    server.text = series("quiet", 9) + series("acme/busy", 10)
    quiet, busy = monitor.look()
    assert (quiet.adapter, quiet.requests_per_second) == ("quiet", 2.0)
    assert busy.requests_per_second == 0
    assert busy.first_token_p50 is None


def test_cells(server):
    row = Monitor(server.client()).look()[0]
    assert cells_of(row)[:7] == ("acme/busy", "1", "RESIDENT", "gpu", "", "0", "10")
    assert cells_of(row)[8:] == ("150.0 ms", "199.0 ms", "", "")
    assert cells_of(replace(row, inter_token_p99=1.5))[-1] == "1.50 s"


def test_names_are_those_of_the_series(mock):
    mock.publish("acme/x")
    card = mock.client().adapters.get("acme/x")
    assert series_name(card) == "acme/x"
    assert series_name(replace(card, name="x")) == "acme/x"
    assert series_name(replace(card, name="x", tenant="default")) == "x"


def test_once(server, monkeypatch, capsys):
    monkeypatch.setattr(top, "connect", lambda *_, **__: server.client())
    assert main(["top", "--once"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("acme/busy")
    assert main(["top", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["first_token_p50"] == pytest.approx(0.15)


def test_on_a_terminal_it_is_drawn_until_interrupted(server, monkeypatch, capsys):
    looks = []

    def interrupt(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(top, "connect", lambda *_, **__: server.client())
    monkeypatch.setattr(top.time, "sleep", interrupt)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["top", "--interval", "0.5"]) == 0
    assert looks == [0.5, 0.5]
    assert "acme/busy" in capsys.readouterr().out


def test_over_the_server(shell, write_adapter, command_server):
    server, _, keys = command_server
    shell("adapters", "load", "seen", "--server-path", write_adapter("seen"))
    with Client(server.url, keys["acme"]) as client:
        for _ in range(3):
            client.completions.create("hi", adapter="seen")
    rows = json.loads(shell("top", "--json", "--key", keys["ops"])[1])
    (row,) = [row for row in rows if row["adapter"] == "acme/seen"]
    assert row["num_requests"] == 3
    assert 0.01 < row["first_token_p50"] <= 0.02
    status, out, err = shell("top", "--once")
    assert (status, "acme/seen" in out, "admin's key" in err) == (0, True, True)
    shell("adapters", "unload", "seen")
