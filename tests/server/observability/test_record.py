"""The log has one line for each request for generation, and never what was asked or answered."""

import json
import logging

import pytest
from pythonjsonlogger.json import JsonFormatter

LOGGER = "vllm.shadow_server.request"


@pytest.fixture
def records(caplog):
    caplog.set_level(logging.INFO, LOGGER)
    # vLLM's loggers do not propagate once they are configured.
    logging.getLogger(LOGGER).addHandler(caplog.handler)
    yield lambda: [record for record in caplog.records if record.name == LOGGER]
    logging.getLogger(LOGGER).removeHandler(caplog.handler)


async def test_a_request_is_logged_with_its_adapter_and_digest_and_without_its_prompt(
    server, records
):
    digest = await server.load("math")
    headers = {"x-request-id": "mine-1", "authorization": "Bearer sk-secret"}
    body = {"prompt": "private words", "adapter": "math"}
    await server.client.post("/v1/completions", json=body, headers=headers)
    (record,) = set(records())
    line = json.loads(JsonFormatter("%(message)s").format(record))
    seconds, engine_id = line.pop("seconds"), line.pop("engine_request_id")
    assert 0 < seconds < 30
    assert len(engine_id) == 32
    assert line.pop("message").startswith("Request mine-1 of default: ok by math, 200 after 0.")
    assert line == {
        "request_id": "mine-1",
        "path": "/v1/completions",
        "tenant": "default",
        "adapter": "math",
        "adapter_version": 1,
        "adapter_digest": digest,
        "outcome": "ok",
        "status": 200,
    }
    written = repr(vars(record))
    assert "private" not in written
    assert "secret" not in written


async def test_requests_that_fail_are_logged_too(server, records):
    await server.complete(adapter="nobody")
    await server.complete(3)
    await server.client.post("/tokenize", json={"prompt": "a"})
    seen = [(r.outcome, r.status, r.adapter) for r in dict.fromkeys(records())]
    assert seen == [("invalid", 404, None), ("invalid", 400, None)]
