"""The serve command line: vLLM's options and ours, and one line for what is wrong."""

import logging
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from shadow_runtime.errors import ConfigError
from shadow_runtime.slots.derive import SlotOptions
from shadow_runtime.vllm_bridge.engine_args import NamedAdapter
from shadow_runtime.vllm_bridge.serving_args import (
    DRAIN_SECONDS,
    check_names,
    make_parser,
    parse,
    parse_adapter,
    slot_options,
)


@pytest.fixture(scope="module")
def parser():
    return make_parser()


def test_vllm_options_pass_through(parser):
    args = parse(parser, ["base", "--dtype", "float32", "--max_model_len", "64", "--port", "1"])
    assert (args.model, args.dtype, args.max_model_len, args.port) == ("base", "float32", 64, 1)
    assert args.shutdown_timeout == DRAIN_SECONDS
    assert parse(parser, ["base", "--shutdown-timeout", "1"]).shutdown_timeout == 1
    assert parse(parser, ["--model", "base"]).model == "base"


def test_slot_options_default_to_the_derivation(parser):
    assert slot_options(parse(parser, ["base"])) == SlotOptions()
    words = ["--shadow-layers", "2", "--shadow-intermediate-size", "64", "--shadow-heads", "4"]
    words += ["--max-injection-rank", "8", "--max-gate-size", "9", "--max-resident-adapters", "3"]
    options = slot_options(parse(parser, ["base", *words, "--max-host-adapters", "7"]))
    assert options == SlotOptions(2, 64, 4, 8, 9, 3, 7)


def test_adapters(parser):
    args = parse(
        parser, ["base", "--adapter", "a=/x/y", "--adapter", "b=z,backbone_config=/c.json"]
    )
    assert args.adapter == [
        NamedAdapter("a", Path("/x/y")),
        NamedAdapter("b", Path("z").absolute(), Path("/c.json")),
    ]
    check_names(args)


@pytest.mark.parametrize(
    ("words", "is_warned"),
    [
        (["--adapter", "a=x", "--adapter", "b=y"], False),
        (["--port", "1", "--port", "2"], True),
    ],
)
def test_only_options_that_cannot_be_repeated_are_warned_about(parser, caplog, words, is_warned):
    logger = logging.getLogger("vllm.utils.argparse_utils")
    logger.addHandler(caplog.handler)
    parse(parser, ["base", *words])
    logger.removeHandler(caplog.handler)
    assert ("duplicate" in caplog.text) == is_warned


@pytest.mark.parametrize(
    "text",
    ["", "a", "a=", "=p", "a/b/c=p", "A/b=p", "a:b=p", "a@1=p", "a=p,backbone_config=", "é=p"],
)
def test_malformed_adapters(text):
    with pytest.raises(ArgumentTypeError):
        parse_adapter(text)


@pytest.mark.parametrize(
    "words",
    [
        ["base", "--adapter", "a=x", "--adapter", "a=y"],
        ["base", "--adapter", "base=x"],
        ["base", "--served-model-name", "one", "two", "--adapter", "two=x"],
    ],
)
def test_names_are_unique(parser, words):
    with pytest.raises(ConfigError, match="given twice"):
        check_names(parse(parser, words))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "name the base model"),
        (["base", "--max-modl-len", "64"], "did you mean --max-model-len?"),
        (["base", "--zzzzzzzz"], "unknown option --zzzzzzzz"),
        (["base", "--adapter", "a"], "is not NAME=PATH"),
        (["base", "--shadow-layers", "0"], "is not a positive number"),
        (["base", "--lora-modules", "a=b"], "--adapter"),
        (["base", "--api-server-count", "2"], "one API process"),
        (["base", "--headless"], "API server"),
        (["base", "--grpc"], "only HTTP"),
        (["base", "--otlp-traces-endpoint", "http://a:b@c:4317"], "OTEL_EXPORTER_OTLP_HEADERS"),
        (["base", "--max-versions", "1"], "at least 2"),
        (["base", "--port", "x"], "--port"),
        (["base", "--enable-auto-tool-choice"], "--tool-call-parser"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(parser, capsys, words, told):
    with pytest.raises(SystemExit) as caught:
        parse(parser, words)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("shadowserve serve: ")
    assert told in lines[0]
