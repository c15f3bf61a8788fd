"""A URL with a password: whole for who opens it, without secrets for everybody else."""

import copy
import json
import logging
from argparse import Namespace

import pytest
from vllm.entrypoints.serve.utils.api_utils import jsonify_non_default_args, log_non_default_args

from shadow_runtime.vllm_bridge.secret_url import SecretUrl, has_password
from shadow_runtime.vllm_bridge.serving_args import lifecycle_options, make_parser, parse

LOGGER = logging.getLogger("vllm.entrypoints.serve.utils.api_utils")
URL = "postgresql://ada:hunter2@db.data:6432/shadow?sslpassword=hunter2"


@pytest.fixture(scope="module")
def args():
    return parse(make_parser(), ["base", "--registry-url", URL])


def test_who_opens_it_gets_the_whole():
    assert SecretUrl(URL).reveal() == URL
    assert copy.deepcopy(SecretUrl(URL)) == SecretUrl(URL)
    assert SecretUrl(URL) != SecretUrl(URL.replace("hunter2", "other"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (URL, "postgresql://ada:***@db.data:6432/shadow?***"),
        ("postgresql://ada@db/shadow", "postgresql://ada@db/shadow"),
        ("postgresql://db/shadow", "postgresql://db/shadow"),
        ("postgresql://ada:hunter2@/shadow?host=/run", "postgresql://ada:***@/shadow?***"),
        ("sqlite:///var/x.db", "sqlite://***"),
        ("hunter2", "***"),
    ],
)
def test_operators_see_which_database_it_is(text, shown):
    assert str(SecretUrl(text)) == shown
    assert repr(SecretUrl(text)) == f"<{shown}>"


@pytest.mark.parametrize("mark", [*"@/#?:%[]\\ ", "@/", "#@", "?@", "123#", "1/"])
def test_an_odd_character_in_a_password_shows_nothing_of_it(mark):
    for password in (
        f"hunter2{mark}hunter2",
        f"{mark}hunter2",
        f"2{mark}hunter2",
        f"hunter2{mark}",
    ):
        for user in ("ada", ""):
            url = SecretUrl(f"postgresql://{user}:{password}@db/shadow")
            assert "hunter2" not in f"{url} {url!r}"


@pytest.mark.parametrize("log", [log_non_default_args, lambda args: LOGGER.info("%s", vars(args))])
def test_a_log_of_the_command_line_has_no_password(args, caplog, log):
    LOGGER.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, LOGGER.name):
        log(args)
    LOGGER.removeHandler(caplog.handler)
    assert "'model': 'base'" in caplog.text
    assert "hunter2" not in caplog.text


def test_no_dump_of_the_options_has_the_password(args):
    options = lifecycle_options(args)
    dumps = [repr(args), str(vars(args)), repr(options), f"{options.registry_url}"]
    dumps += [json.dumps(jsonify_non_default_args(args)), json.dumps(vars(args), default=str)]
    dumps += [str(Namespace(**vars(args)))]
    assert [dump for dump in dumps if "hunter2" in dump] == []
    assert options.registry_url.reveal() == URL


@pytest.mark.parametrize(
    ("url", "is_there"),
    [
        ("http://otel:4317", False),
        ("http://ada@otel:4317", False),
        ("http://ada:x@otel:4317", True),
        ("http://ada:a/x@otel", True),
        ("", False),
    ],
)
def test_passwords_are_noticed(url, is_there):
    assert has_password(url) is is_there


@pytest.mark.parametrize("mark", list("/#?"))
def test_the_begin_of_a_password_is_no_port(mark):
    assert "4711" not in str(SecretUrl(f"postgresql://ada:4711{mark}x@db/shadow"))
