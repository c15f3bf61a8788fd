"""What is written: columns, JSON, colour only where it is wanted."""

import io
import json

import pytest

from shadow_client.adapter import Problem
from shadow_server.command import output


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "variables", "expected"),
    [
        (Terminal(), {}, True),
        (io.StringIO(), {}, False),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "dumb"}, False),
    ],
)
def test_colour(stream, variables, expected, monkeypatch):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert output.is_coloured(stream) == expected


def test_columns(capsys):
    output.write_table(("name", "n"), [("a", 5), ("longer", "12")])
    assert capsys.readouterr().out == "name    n\na        5\nlonger  12\n"
    output.write_table(("name", "n"), [])
    assert capsys.readouterr().out == "name  n\n"


def test_fields_leave_out_what_is_not_known(capsys):
    output.write_fields([("name", "x"), ("note", None), ("n", 0)])
    assert capsys.readouterr().out == "name  x\nn     0\n"


def test_json_of_values(capsys):
    output.write_json([Problem("a", "b")])
    assert json.loads(capsys.readouterr().out) == [{"code": "a", "message": "b"}]
    with pytest.raises(TypeError):
        output.write_json(object())


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (58_100_000, "58.1 MB"), (3e15, "3000.0 TB")],
)
def test_sizes(num_bytes, text):
    assert output.spell_bytes(num_bytes) == text


EVIL = "\x1b]0;title\x07\x9b2J\u202eabc\n\ud800é"
PLAIN = r"\x1b]0;title\x07\x9b2J\u202eabc\n\ud800é"


def test_what_others_wrote_only_shows_itself(capsys):
    output.write_table((" ",), [(EVIL,)])
    output.write_fields([("n", EVIL)])
    output.write_note(EVIL)
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1:] == [PLAIN, f"n  {PLAIN}"]
    assert captured.err == f"{PLAIN}\n"


def test_a_models_text_keeps_lines_and_joined_emoji():
    text = "a\n\tb\U0001f468\u200d\U0001f469"
    assert output.shown_text(text) == text
    assert output.shown_text("\x1b[31m\r\x9b") == r"\x1b[31m\r\x9b"
