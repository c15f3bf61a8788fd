"""A server's own OpenAPI document turned into requests: what every fuzz test of it shares."""

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.core.failures import Failure
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

MODES = {"positive": [GenerationMode.POSITIVE], "negative": [GenerationMode.NEGATIVE]}

ALLOWED_5XX = (503, 507)
"""What a full or draining server answers, and what the document says of it."""


@schemathesis.check
def no_server_error(ctx, response, case):
    """Every 5xx but the ones that a server may answer on purpose, in the one error shape."""
    if response.status_code >= 500 and response.status_code not in ALLOWED_5XX:
        raise Failure(
            operation=case.operation.label,
            title="Server error",
            message=f"{response.status_code}: {response.text[:500]}",
        )
    if response.status_code >= 400 and case.method.upper() != "HEAD":
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}, error


CHECKS = [
    no_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]
NEGATIVE_CHECKS = [*CHECKS, negative_data_rejection]


def checks_of(path: str, checks: list) -> list:
    """Return the checks of one path: the metrics library answers every method."""
    return [c for c in checks if not (path == "/metrics" and c is unsupported_method)]


def schema_of(document: dict, mode: str):
    """Return the schema of an OpenAPI document, made to generate `positive` or `negative` requests."""
    schema = schemathesis.openapi.from_dict(document)
    schema.config.generation.modes = MODES[mode]
    schema.config.generation.deterministic = True
    return schema


def fuzz_settings(max_examples: int) -> settings:
    """Return hypothesis settings that give the same requests in every run."""
    return settings(
        max_examples=max_examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
