"""`shadowserve adapters convert` on the shipped demo: what is written, and what is refused."""

import json

import pytest

from shadow_server.cli import main
from shadow_server.demo import demo_adapter_paths, demo_model_path

BASE = str(demo_model_path())


def convert(name, target, to, *words):
    source = str(demo_adapter_paths()[name])
    return main(["adapters", "convert", source, str(target), "--to", to, "--base", BASE, *words])


@pytest.mark.parametrize(("name", "own_format"), [("french", "paper"), ("json", "peft")])
def test_an_adapter_is_written_anew(name, own_format, tmp_path, capsys):
    assert convert(name, tmp_path / "made", own_format, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["source"]["digest"] == told["target"]["digest"]
    assert convert(name, tmp_path / "again", own_format) == 0
    assert "(the same)" in capsys.readouterr().out


def test_what_the_other_format_cannot_compute_is_refused(tmp_path, capsys):
    assert convert("french", tmp_path / "made", "peft") == 6
    err = capsys.readouterr().err
    assert "through SiLU behind a LayerNorm" in err
    assert not (tmp_path / "made").exists()
    assert convert("json", tmp_path / "made", "paper", "--json") == 6
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "adapter_invalid"


def test_wrong_command_lines(tmp_path, capsys):
    assert convert("french", tmp_path, "onnx") == 2
    assert main(["adapters", "convert", "a", "b", "--to", "peft"]) == 2
    assert main(["adapters", "convert", "/none", "b", "--to", "peft", "--base", BASE]) == 5
    assert main(["adapters", "convert", "a", "b", "--to", "peft", "--base", "/none"]) == 6
    assert "the base model '/none' cannot be read" in capsys.readouterr().err
