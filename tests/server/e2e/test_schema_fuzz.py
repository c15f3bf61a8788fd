"""The real server against its own OpenAPI document, with vLLM's own request models."""

import os

import httpx
import pytest
import requests
from hypothesis import given

from schema_fuzz import CHECKS, checks_of, fuzz_settings, schema_of
from shadow_server.operation import OPERATIONS

pytestmark = [pytest.mark.engine, pytest.mark.slow]

EXAMPLES = 200


@pytest.fixture(scope="module")
def fuzzed_url(request):
    """The server of SHADOW_TEST_URL, else the session's own."""
    given_url = os.environ.get("SHADOW_TEST_URL")
    return given_url or request.getfixturevalue("server").process.url


@pytest.fixture(scope="module")
def session():
    with requests.Session() as session:
        yield session


# An operation without a body takes nothing that could be wrong: any text is a name.
CASES = [
    pytest.param(operation, mode, id=f"{operation.method} {operation.path} {mode}")
    for operation in OPERATIONS
    for mode in ("positive", *(("negative",) if operation.body else ()))
]


def bound_beam_search(body):
    """Keep a beam search short: vLLM takes each of its steps as a new request, to the context's end."""
    if isinstance(body, dict) and body.get("use_beam_search"):
        body |= {"max_tokens": 8, "max_completion_tokens": 8}


@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_operation(fuzzed_url, session, operation, mode):
    document = httpx.get(f"{fuzzed_url}/openapi.json").json()
    schema = schema_of(document, mode)
    described = schema[operation.path][operation.method.upper()]
    checks = checks_of(operation.path, CHECKS)

    # vLLM reads numbers and booleans leniently, so an invalid body may be answered.
    @fuzz_settings(EXAMPLES)
    @given(case=described.as_strategy(generation_mode=schema.config.generation.modes[0]))
    def run(case):
        bound_beam_search(case.body)
        case.call_and_validate(base_url=fuzzed_url, session=session, checks=checks, timeout=60)

    run()
    assert httpx.get(f"{fuzzed_url}/health/ready").status_code == 200
