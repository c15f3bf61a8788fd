"""Paths: nothing outside the roots is read, nor told about."""

import json
import os
import unicodedata

import pytest

from fake_server import error_of
from shadow_runtime.errors import AdapterNotFoundError
from shadow_server.admin.path import AdapterPath, resolve_adapter_path
from shadow_server.errors import ApiError
from shadow_server.tenancy.identity import Identity

JSON = {"content-type": "application/json"}


@pytest.fixture
def roots(tmp_path):
    for name in ("one", "two", "outside", "one-sibling"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "math").mkdir()
    (tmp_path / "two" / "poet").mkdir()
    (tmp_path / "outside" / "secret").mkdir()
    return [str(tmp_path / "one"), str(tmp_path / "two")]


def refusal(text, roots):
    with pytest.raises(ApiError) as caught:
        resolve_adapter_path(text, roots)
    return caught.value


def outcome(text, roots):
    try:
        return AdapterPath, resolve_adapter_path(text, roots)
    except (ApiError, AdapterNotFoundError) as error:
        return type(error), str(error)


def test_paths_inside_are_taken(roots, tmp_path):
    expected = str(tmp_path / "one" / "math")
    for text in (
        "math",
        "./math",
        "math/",
        "math/.",
        "math//",
        expected,
        f"{expected}/",
        "./math/./",
    ):
        found = resolve_adapter_path(text, roots)
        assert (found.real, found.shown) == (expected, "math")
    assert resolve_adapter_path("poet", roots).real == str(tmp_path / "two" / "poet")
    assert resolve_adapter_path(".", roots).shown == "."


@pytest.mark.parametrize(
    "text",
    [
        "/etc",
        "..",
        "../outside/secret",
        "math/../../outside/secret",
        "math/../math",
        "/",
        "//etc/passwd",
        "../one-sibling",
        "../one/math",
        "x/../../..",
        "/../../etc",
        "/proc/self/root/etc",
        "/etc/../etc/passwd",
        "/" + "a" * 300,
        "../" + "a" * 300,
    ],
)
def test_paths_outside_are_forbidden(roots, text, tmp_path):
    error = refusal(text, roots)
    assert (error.rule.status, error.rule.code) == (403, "adapter_path_forbidden")
    assert str(tmp_path) not in error.message


def test_what_exists_outside_cannot_be_told_from_what_does_not(roots, tmp_path):
    outside = tmp_path / "outside"
    os.symlink(tmp_path / "one" / "math", outside / "into")
    os.symlink(tmp_path / "one", tmp_path / "one" / "here")
    os.symlink(outside, tmp_path / "one" / "away")
    for there, missing in (
        (f"{outside}/secret", f"{outside}/nobody"),
        ("../outside/secret", "../outside/nobody"),
        ("away/secret", "away/nobody"),
        ("../outside/into/../math", "../outside/nobody/../math"),
        (f"{outside}/into/..", f"{outside}/nobody/.."),
        (f"{tmp_path}/one-sibling", f"{tmp_path}/one-cousin"),
    ):
        answers = [outcome(text, roots) for text in (there, missing)]
        assert answers[0] == answers[1]
        assert [outcome(text, roots[:1])[0] for text in (there, missing)] == [ApiError] * 2


def test_links_are_judged_by_where_they_end(roots, tmp_path):
    one = tmp_path / "one"
    os.symlink(tmp_path / "outside" / "secret", one / "leak")
    os.symlink(one / "math", one / "alias")
    os.symlink(one / "loop", one / "loop")
    with pytest.raises(ApiError, match="outside"):
        resolve_adapter_path("leak", roots[:1])
    with pytest.raises(AdapterNotFoundError):
        resolve_adapter_path("leak", roots)
    with pytest.raises(AdapterNotFoundError):
        resolve_adapter_path("loop", roots)
    found = resolve_adapter_path("alias", roots)
    assert (found.real, found.shown) == (str(one / "math"), "math")


def test_links_among_the_files_are_judged_too(roots, tmp_path):
    math = tmp_path / "one" / "math"
    (tmp_path / "one" / "blob").write_text("x")
    os.symlink(tmp_path / "one" / "blob", math / "weights")
    assert resolve_adapter_path("math", roots)
    os.symlink("/etc/hostname", math / "config.json")
    with pytest.raises(ApiError, match="link"):
        resolve_adapter_path("math", roots)


@pytest.mark.parametrize("text", ["", "a\0b", "\0", "x" * 5000, "a\ud800"])
def test_what_cannot_be_a_path(roots, text):
    error = refusal(text, roots)
    assert (error.rule.status, error.rule.code) == (400, "adapter_path_invalid")


@pytest.mark.parametrize(
    "text",
    [
        "nobody",
        "math.",
        "math ",
        " math",
        "MATH",
        "m" * 300,
        "math/" + "x" * 300,
        "..\\..\\outside\\secret",
        "one\\math",
        "%2e%2e/outside/secret",
        "%2e%2e%2foutside%2fsecret",
        "..%2foutside",
        "math%00",
        "~",
        "$HOME",
        "．．／outside",
        "․․/outside",
        "...",
    ],
)
def test_what_is_not_there_is_not_found(roots, text):
    with pytest.raises(AdapterNotFoundError):
        resolve_adapter_path(text, roots)


def test_unicode_forms_are_different_names(roots, tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    (tmp_path / "one" / composed).mkdir()
    assert resolve_adapter_path(composed, roots).real.endswith(composed)
    with pytest.raises(AdapterNotFoundError):
        resolve_adapter_path(decomposed, roots)


def test_without_roots_everything_is_forbidden():
    with pytest.raises(ApiError, match="--adapter-root"):
        resolve_adapter_path("/tmp", [])


def test_root_may_be_the_file_system():
    assert resolve_adapter_path("/etc", ["/"]).real == os.path.realpath("/etc")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0",
        "..",
        "/etc",
        "/etc/passwd",
        "x" * 300,
        "x" * 5000,
        "%2e%2e",
        "..\\x",
        "math.",
        "\u00e9",
        "e\u0301",
        "a\ud800",
        "\ud800",
        "\x7f\x01",
        "link",
        "file",
        ".",
        "/",
        "fifo",
    ],
)
async def test_no_path_breaks_a_route(server, text):
    os.symlink("/etc", server.root / "link")
    (server.root / "file").write_text("x")
    os.mkfifo(server.root / "fifo")
    user = server.caller(Identity(tenant="acme", role="user"))
    body = {"name": "a", "path": text}
    for path, sent in (
        ("/v1/adapters", body),
        (
            "/v1/adapters",
            {"name": "a", "path": server.write_adapter("good"), "backbone_config": text},
        ),
        ("/v1/adapters/validate", {"path": text}),
        ("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": text}),
    ):
        answer = await user.post(path, content=json.dumps(sent), headers=JSON)
        if path.endswith("validate") and answer.status_code == 200:
            assert answer.json()["is_valid"] is False
            continue
        if answer.status_code == 201 and text == "file":
            continue  # any regular file below a root may be a backbone's config
        assert answer.status_code in (400, 403, 404, 422), answer.text
        assert str(server.root) not in error_of(answer)["message"]
    assert (await server.client.get("/health/live")).status_code == 200
