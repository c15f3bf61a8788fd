"""The command line without an engine."""

import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest

from shadow_server.cli import (
    add_server_arguments,
    attach_server,
    check_server_arguments,
    main,
    server_settings,
)
from shadow_server.engine import runtime_errors
from shadow_server.fake_engine import FakeEngine


def parse(*words, **engine_options):
    parser = ArgumentParser()
    add_server_arguments(parser)
    options = {"host": None, "uds": None, "api_key": None, "scheduling_policy": "fcfs"}
    options |= engine_options
    parser.set_defaults(**options)
    return parser.parse_args([str(word) for word in words])


@pytest.fixture(autouse=True)
def _without_keys_of_the_environment(monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


@pytest.fixture
def tenants_file(tmp_path, capsys):
    path = tmp_path / "tenants.json"
    assert main(["tenants", "create", "acme", "--tenants-file", str(path)]) == 0
    capsys.readouterr()
    return path


def test_usage_and_unknown_commands(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert {"serve", "demo", "tenants", "adapters", "chat", "top", "doctor"} <= set(out.split())
    assert main(["fly"]) == 2
    assert "No such command 'fly'" in capsys.readouterr().err


def test_server_options_become_settings(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    words = ["--adapter-root", tmp_path / "link", "--adapter-root", tmp_path]
    words += ["--max-body-bytes", "99", "--max-upload-bytes", "77", "--max-queued-requests", "0"]
    words += ["--hub-allow", "org/*", "--hub-allow", "me/x", "--hub-endpoint", "http://hub"]
    settings = server_settings(parse(*words, max_num_seqs=12))
    assert settings.adapter_roots == (str(tmp_path / "real"), str(tmp_path))
    assert (settings.max_body_bytes, settings.max_upload_bytes) == (99, 77)
    assert (settings.hub_allow, settings.hub_endpoint) == (("org/*", "me/x"), "http://hub")
    assert (settings.max_running_requests, settings.max_queued_requests) == (12, 0)
    plain = server_settings(parse())
    assert (plain.adapter_roots, plain.hub_allow, plain.hub_endpoint) == ((), (), None)
    assert (plain.max_running_requests, plain.max_queued_requests) == (256, None)


@pytest.mark.parametrize("option", ["--max-queued-requests", "--max-upload-bytes"])
@pytest.mark.parametrize("value", ["-1", "x", "1.5", "", "²"])
def test_numbers_are_whole(option, value, capsys):
    with pytest.raises(SystemExit):
        parse(f"{option}={value}")
    assert "is not a whole number" in capsys.readouterr().err


def test_a_hubs_password_is_refused_and_not_shown(capsys):
    with pytest.raises(SystemExit):
        parse("--hub-endpoint", "https://ada:hunter2@hub")
    error = capsys.readouterr().err
    assert "no user or password" in error
    assert "hunter2" not in error


def test_missing_root_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse("--adapter-root", "/nowhere")
    assert "is not a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "host", "bound"),
    [
        ((), None, "127.0.0.1"),
        ((), "", "127.0.0.1"),
        ((), "localhost", "localhost"),
        ((), "::1", "::1"),
        (("--allow-unauthenticated",), None, None),
        (("--allow-unauthenticated",), "0.0.0.0", "0.0.0.0"),
        (("--tenants-file", "FILE"), None, None),
        (("--tenants-file", "FILE"), "0.0.0.0", "0.0.0.0"),
    ],
)
def test_where_a_server_listens(words, host, bound, tenants_file):
    args = parse(*(tenants_file if word == "FILE" else word for word in words), host=host)
    check_server_arguments(args)
    assert args.host == bound


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org"])
def test_without_keys_nobody_else_is_served(host):
    with pytest.raises(runtime_errors.ConfigError, match="this machine only"):
        check_server_arguments(parse(host=host))


def test_a_socket_file_needs_no_host():
    args = parse(uds="/run/x.sock", host="0.0.0.0")
    check_server_arguments(args)
    assert args.host == "0.0.0.0"


def test_options_that_contradict_each_other(tenants_file, monkeypatch):
    named = ("--tenants-file", tenants_file)
    with pytest.raises(runtime_errors.ConfigError, match="two sets of keys"):
        check_server_arguments(parse(*named, api_key=["k"]))
    with pytest.raises(runtime_errors.ConfigError, match="no meaning"):
        check_server_arguments(parse(*named, "--allow-unauthenticated"))
    with pytest.raises(runtime_errors.ConfigError, match="scheduling-policy priority"):
        check_server_arguments(parse(*named, scheduling_policy="priority"))
    monkeypatch.setenv("VLLM_API_KEY", "k")
    with pytest.raises(runtime_errors.ConfigError, match="two sets of keys"):
        check_server_arguments(parse(*named))
    # vLLM's own keys are no tenants: they leave routes open.
    with pytest.raises(runtime_errors.ConfigError, match="this machine only"):
        check_server_arguments(parse(api_key=["k"], host="0.0.0.0"))


def test_a_tenants_file_that_cannot_be_used_is_told_before_anything_starts(tmp_path):
    with pytest.raises(runtime_errors.ConfigError, match="cannot be read"):
        check_server_arguments(parse("--tenants-file", tmp_path / "none"))
    (tmp_path / "bad").write_text("{}")
    with pytest.raises(runtime_errors.ConfigError, match="is not a tenants file"):
        check_server_arguments(parse("--tenants-file", tmp_path / "bad"))


async def test_the_application_follows_its_tenants_file(tmp_path, tenants_file):
    async with FakeEngine.open(tmp_path / "state") as engine:
        app = attach_server(engine, parse("--tenants-file", Path(tenants_file)))
        guards = [middleware.cls.__name__ for middleware in app.user_middleware]
        assert guards[:3] == [
            "RequestIdMiddleware",
            "ErrorShapeMiddleware",
            "AuthenticationMiddleware",
        ]


def test_server_and_fake_engine_import_neither_torch_nor_vllm():
    code = (
        "import sys, shadow_server.app, shadow_server.fake_engine, shadow_server.demo_command;"
        "sys.stdout.write(' '.join({'torch', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
