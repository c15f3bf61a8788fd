"""The command line without an engine."""

import subprocess
import sys
from argparse import ArgumentParser

import pytest

from shadow_server.cli import add_server_arguments, main, server_settings


def test_usage_and_unknown_commands(capsys):
    assert main([]) == 0
    assert "shadowserve serve MODEL" in capsys.readouterr().out
    assert main(["fly"]) == 2
    assert capsys.readouterr().err == "shadowserve: no command 'fly' (try: shadowserve --help)\n"


def test_server_options_become_settings(tmp_path):
    parser = ArgumentParser()
    add_server_arguments(parser)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    words = ["--adapter-root", str(tmp_path / "link"), "--adapter-root", str(tmp_path)]
    settings = server_settings(parser.parse_args([*words, "--max-body-bytes", "99"]))
    assert settings.adapter_roots == (str(tmp_path / "real"), str(tmp_path))
    assert settings.max_body_bytes == 99
    assert server_settings(parser.parse_args([])).adapter_roots == ()


def test_missing_root_is_refused(capsys):
    parser = ArgumentParser()
    add_server_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--adapter-root", "/nowhere"])
    assert "is not a directory" in capsys.readouterr().err


def test_server_and_fake_engine_import_neither_torch_nor_vllm():
    code = (
        "import sys, shadow_server.app, shadow_server.fake_engine, shadow_server.demo_command;"
        "sys.stdout.write(' '.join({'torch', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
