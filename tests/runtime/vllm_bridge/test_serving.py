"""Starting without an engine: what is refused before anything heavy starts."""

import pytest

from shadow_runtime.config import ShadowConfig
from shadow_runtime.vllm_bridge import serving
from shadow_runtime.vllm_bridge.serving_args import make_parser, parse


@pytest.fixture
def serve(monkeypatch):
    # The process's logging belongs to the test session.
    monkeypatch.setattr(serving, "configure_logging_from_args", lambda args: None)

    def attach(engine, args):
        raise AssertionError("an engine was started")

    return lambda *words: serving.main(list(words), lambda parser: None, lambda args: None, attach)


@pytest.mark.parametrize(
    ("model", "told"), [("empty", "cannot be read"), ("nowhere", "does not exist")]
)
def test_base_that_cannot_be_read_is_one_line(serve, tmp_path, capsys, model, told):
    (tmp_path / "empty").mkdir()
    assert serve(str(tmp_path / model)) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"shadowserve serve: the base model '{tmp_path / model}' {told}")


def test_the_engine_knows_of_its_server(library, tmp_path):
    args = parse(
        make_parser(),
        [str(library.base_dir), "--state-dir", str(tmp_path), "--skip-tokenizer-init"],
    )
    plan = serving._plan(args)
    assert plan.config.has_server
    assert ShadowConfig.from_dict(args.additional_config["shadow"]) == plan.config


def test_name_clash_is_one_line(serve, capsys):
    assert serve("base", "--adapter", "a=x", "--adapter", "a=y") == 1
    assert capsys.readouterr().err == "shadowserve serve: the name 'a' is given twice\n"


@pytest.mark.parametrize(("asked", "seconds"), [(None, 75), ("9", 9)])
def test_idle_connections_outlive_those_of_proxies(monkeypatch, asked, seconds):
    monkeypatch.delenv("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", raising=False)
    if asked is not None:
        monkeypatch.setenv("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", asked)
    assert serving._keep_alive_seconds() == seconds
