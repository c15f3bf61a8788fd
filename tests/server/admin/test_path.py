"""Paths: nothing outside the roots is read, nor told about."""

import os

import pytest

from shadow_runtime.errors import AdapterNotFoundError
from shadow_server.admin.path import resolve_adapter_path
from shadow_server.errors import ApiError


@pytest.fixture
def roots(tmp_path):
    for name in ("one", "two", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "math").mkdir()
    (tmp_path / "two" / "poet").mkdir()
    (tmp_path / "outside" / "secret").mkdir()
    return [str(tmp_path / "one"), str(tmp_path / "two")]


def test_paths_inside_are_taken(roots, tmp_path):
    expected = str(tmp_path / "one" / "math")
    for text in ("math", "./math", "math/", expected, f"{roots[1]}/../one/math", "math/../math"):
        assert resolve_adapter_path(text, roots) == expected
    assert resolve_adapter_path("poet", roots) == str(tmp_path / "two" / "poet")


@pytest.mark.parametrize(
    "text",
    [
        "/etc",
        "..",
        "../outside/secret",
        "math/../../outside/secret",
        "/",
        "//etc/passwd",
        "../one-sibling",
        "~/x/../../..",
    ],
)
def test_paths_outside_are_forbidden_whether_they_exist_or_not(roots, text, tmp_path):
    (tmp_path / "one-sibling").mkdir()
    if text == "~/x/../../..":
        text = "x/../../.."
    with pytest.raises(ApiError) as caught:
        resolve_adapter_path(text, roots)
    assert caught.value.rule.status == 403
    assert caught.value.rule.code == "adapter_path_forbidden"
    assert str(tmp_path) not in caught.value.message


def test_links_are_judged_by_where_they_end(roots, tmp_path):
    one = tmp_path / "one"
    os.symlink(tmp_path / "outside" / "secret", one / "leak")
    os.symlink(one / "math", one / "alias")
    with pytest.raises(ApiError, match="outside"):
        resolve_adapter_path("leak", roots[:1])
    with pytest.raises(AdapterNotFoundError):
        resolve_adapter_path("leak", roots)
    assert resolve_adapter_path("alias", roots) == str(one / "math")


def test_links_among_the_files_are_judged_too(roots, tmp_path):
    math = tmp_path / "one" / "math"
    (tmp_path / "one" / "blob").write_text("x")
    os.symlink(tmp_path / "one" / "blob", math / "weights")
    assert resolve_adapter_path("math", roots)
    os.symlink("/etc/hostname", math / "config.json")
    with pytest.raises(ApiError, match="link"):
        resolve_adapter_path("math", roots)


@pytest.mark.parametrize("text", ["", "a\0b", "x" * 5000])
def test_what_cannot_be_a_path(roots, text):
    with pytest.raises(ApiError) as caught:
        resolve_adapter_path(text, roots)
    assert caught.value.rule.status == 400


def test_missing_inside_is_not_found(roots):
    with pytest.raises(AdapterNotFoundError):
        resolve_adapter_path("nobody", roots)


def test_without_roots_everything_is_forbidden():
    with pytest.raises(ApiError, match="--adapter-root"):
        resolve_adapter_path("/tmp", [])


def test_root_may_be_the_file_system():
    assert resolve_adapter_path("/etc", ["/"]) == os.path.realpath("/etc")
