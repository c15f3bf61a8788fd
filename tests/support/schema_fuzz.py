"""A server's own OpenAPI document turned into requests: what every fuzz test of it shares."""

import jsonschema_rs
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
from schemathesis.transport.serialization import Binary

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


@schemathesis.check
def invalid_data_is_rejected(ctx, response, case):
    """As the tool's own check, for bodies that are invalid on the wire.

    The tool takes every mutated form with a file in it for invalid. But a form's only file looks the same as a list of
    one, and any bytes are a file.
    """
    if case.media_type != "multipart/form-data" or not is_valid_form(case):
        negative_data_rejection(ctx, response, case)


def is_valid_form(case) -> bool:
    """Return whether a form's parts, as they are sent, satisfy the operation's schema."""
    operation = case.operation
    path = operation.schema.raw_schema["paths"][operation.path]
    schema = path[operation.method.lower()]["requestBody"]["content"][case.media_type]["schema"]
    return isinstance(case.body, dict) and form_satisfies(case.body, schema)


def form_satisfies(form: dict, schema: dict) -> bool:
    """Return whether parts satisfy a schema, files standing for any text and one part for a list of one."""
    sent = {name: _sent(value, schema["properties"].get(name, {})) for name, value in form.items()}
    return jsonschema_rs.validator_for(schema).is_valid(sent)


def _sent(value, schema: dict):
    values = value if isinstance(value, list) else [value]
    texts = ["" if isinstance(each, Binary) else each for each in values]
    is_list = isinstance(value, list) or schema.get("type") == "array"
    return texts if is_list else texts[0]


NEGATIVE_CHECKS = [*CHECKS, invalid_data_is_rejected]


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
