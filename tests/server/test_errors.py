"""The error table is total, and messages carry nothing of the machine."""

import pytest

from shadow_runtime import errors as runtime_errors
from shadow_server.errors import RULES, describe_validation, error_body, rule_of, scrub


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
        assert 400 <= rule.status < 600
        assert (rule.status >= 500) == (rule.type == "server_error")


def test_codes_are_unique():
    codes = [rule.code for rule in RULES.values()]
    assert len(codes) == len(set(codes))


def test_unlisted_subclass_gets_its_ancestor():
    class NewFileError(runtime_errors.AdapterFileError):
        pass

    assert rule_of(NewFileError()).code == "adapter_file_invalid"


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
