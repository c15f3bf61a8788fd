"""The progress bar: on a terminal, whatever names say."""

import pytest

from shadow_client.adapter import Progress
from shadow_server.command.progress import progress_bar


@pytest.fixture
def terminal(monkeypatch, capsys):
    """Return a function that makes standard error a terminal; capsys has what it shows."""
    monkeypatch.setenv("TERM", "xterm")
    return lambda: monkeypatch.setattr("sys.stderr.isatty", lambda: True)


def test_nobody_sees_it_off_a_terminal(capsys):
    with progress_bar("x") as tell:
        assert tell is None
    assert capsys.readouterr().err == ""


def test_for_programs_nothing_is_drawn(terminal, capsys):
    terminal()
    with progress_bar("x", is_quiet=True) as tell:
        assert tell is None
    assert capsys.readouterr().err == ""


def test_names_and_stages_are_no_markup_and_no_escape(terminal, capsys):
    terminal()
    with progress_bar("[/x]") as tell:
        tell(Progress("[red]\x1b]0;title\x07", 1, 2))
    drawn = capsys.readouterr().err
    assert r"[/x]: [red]\x1b]0;title\x07" in drawn
    assert "\x1b]0;" not in drawn
