"""The error table is total, and messages carry nothing of the machine."""

import ast
from pathlib import Path

import pytest

import shadow_server
from shadow_runtime import errors as runtime_errors
from shadow_server.errors import (
    CODE_RULES,
    RULES,
    STATUS_RULES,
    ApiError,
    describe_validation,
    error_body,
    rule_of,
    rule_of_status,
    scrub,
)
from shadow_server.errors_document import render_errors

DOCUMENT = Path(shadow_server.__file__).parents[2] / "docs" / "errors.md"


def runtime_classes():
    found, todo = [], [runtime_errors.ShadowError]
    while todo:
        cls = todo.pop()
        found.append(cls)
        todo += cls.__subclasses__()
    return [cls for cls in found if cls.__module__ == runtime_errors.__name__]


def test_table_is_total_and_tells_the_class_code():
    classes = runtime_classes()
    assert len(classes) >= 12
    assert set(RULES) == set(classes)
    for cls in classes:
        rule = rule_of(cls("why"))
        assert rule.code == cls.code
        assert CODE_RULES[cls.code] is rule


def test_every_row_holds_together():
    for code, rule in CODE_RULES.items():
        assert rule.code == code
        assert 400 <= rule.status < 600
        assert rule.meaning.endswith(".")
        assert (rule.status >= 500) == (rule.type in ("server_error", "service_unavailable_error"))
        assert (rule.status == 503) == (rule.type == "service_unavailable_error")
        assert (rule.retry_after_seconds is not None) == (rule.status in (429, 503))
        assert not rule.is_retryable or rule.retry_after_seconds


def test_codes_are_unique():
    codes = [rule.code for rule in RULES.values()]
    assert len(codes) == len(set(codes))
    assert not set(codes) & {rule.code for rule in STATUS_RULES.values()}


def test_every_code_that_the_source_raises_is_in_the_table():
    used = set()
    for path in Path(shadow_server.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            used |= codes_in(node)
    assert len(used) > 15
    assert used <= set(CODE_RULES)


def codes_in(node):
    """Return the codes in one call of `ApiError.of` or `ApiError(..., code=...)` or `rule_of_status`."""
    if not isinstance(node, ast.Call):
        return set()
    name = ast.unparse(node.func)
    given = []
    if name == "ApiError.of":
        given = node.args[:1]
    elif name == "rule_of_status":
        given = node.args[1:2]
    elif name == "ApiError":
        given = [word.value for word in node.keywords if word.arg == "code"]
    return {value.value for value in given if isinstance(value, ast.Constant) and value.value}


def test_error_by_code():
    error = ApiError.of("server_overloaded", "full", headers={"Retry-After": "7", "x-a": "b"})
    answer = error.response()
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "7"
    assert answer.headers["x-should-retry"] == "true"
    assert answer.headers["x-a"] == "b"
    assert ApiError.of("insufficient_quota", "no").response().headers["x-should-retry"] == "false"
    assert int(ApiError.of("insufficient_quota", "no").response().headers["retry-after"]) >= 1
    with pytest.raises(KeyError):
        ApiError.of("no_such_code", "why")


def test_status_without_a_row_and_code_of_the_engine():
    assert rule_of_status(418).code == "invalid_request"
    assert rule_of_status(502).type == "server_error"
    rule = rule_of_status(503, "engine_says")
    assert (rule.code, rule.is_retryable) == ("engine_says", True)
    assert rule_of_status(400, "server_overloaded").status == 400


def test_unlisted_subclass_gets_its_ancestor():
    class NewFileError(runtime_errors.AdapterFileError):
        pass

    assert rule_of(NewFileError()).code == "adapter_file_invalid"


def test_document_is_made_from_the_table():
    assert DOCUMENT.read_text() == render_errors(CODE_RULES.values())


def test_body_shape():
    body = error_body("why", rule_of(runtime_errors.AdapterNotFoundError()), "adapter")
    assert body == {
        "error": {
            "message": "why",
            "type": "invalid_request_error",
            "param": "adapter",
            "code": "adapter_not_found",
        }
    }


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("/home/me/secret/x.safetensors is bad", "<path> is bad"),
        ("/roots/a/x.json is bad", "/roots/a/x.json is bad"),
        ("/roots/ab/x.json is bad", "<path> is bad"),
        ("<object at 0x7f12deadbeef>", "<object at <address>>"),
        ("bad\nTraceback (most recent call last):\n  File", "bad"),
        ("rank 8/16 is over 4", "rank 8/16 is over 4"),
        (
            "see https://docs.vllm.ai/en/latest for more",
            "see https://docs.vllm.ai/en/latest for more",
        ),
        ("'/etc/passwd'", "'<path>'"),
    ],
)
def test_scrub(message, expected):
    assert scrub(message, ["/roots/a"]) == expected


def test_validation_never_echoes_values_and_is_bounded():
    problems = [
        {"loc": ("body", f"f{i}", "list[int]", 3), "msg": "bad", "input": "S"} for i in range(99)
    ]
    message, param = describe_validation(problems)
    assert param == "f0.3"
    assert "S" not in message
    assert len(message) < 200
