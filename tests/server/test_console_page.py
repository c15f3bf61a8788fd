"""The console's files: all of them are served, to anyone, and the page can neither run nor reach anything else."""

import re

import pytest
from hatchling.builders.wheel import WheelBuilder

from fake_server import error_of
from shadow_server.console_page import HEADERS, MEDIA_TYPES, read_console
from source_tree import ROOT

FOLDER = ROOT / "server/shadow_server/console"
FILES = sorted(path for path in FOLDER.iterdir() if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]


def test_every_file_of_the_folder_is_known():
    assert {path.name for path in FILES} == set(read_console())
    assert len(SCRIPTS) > 3


def test_wheel_holds_every_file():
    held = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert {f"shadow_server/console/{path.name}" for path in FILES} <= held


async def test_a_browser_without_a_key_gets_every_file(tenants_server):
    page = await tenants_server.client.get("/console")
    assert page.text == (FOLDER / "index.html").read_text()
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for path in FILES:
        if path.name == "index.html":
            continue
        answer = await tenants_server.client.get(f"/console/{path.name}")
        assert answer.content == path.read_bytes()
        assert answer.headers["content-type"].split(";")[0] == MEDIA_TYPES[path.suffix]
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS


async def test_policy_allows_this_origin_and_nothing_inline(server):
    policy = (await server.client.get("/console")).headers["content-security-policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.pop("default-src") == "'none'"
    assert rules.pop("require-trusted-types-for") == "'script'"
    assert set(rules.values()) == {"'self'", "'none'"}
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["form-action"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"


@pytest.mark.parametrize("name", ["x.js", "index.html", "..%2fapp.py", "main.js%00", "__init__.py"])
async def test_other_files_are_not_served(server, name):
    answer = await server.client.get(f"/console/{name}")
    assert answer.status_code == 404
    error_of(answer)


def test_page_asks_for_nothing_that_is_not_served():
    page = (FOLDER / "index.html").read_text()
    asked = set(re.findall(r'(?:src|href)="([^#"]+)"', page))
    assert asked <= {f"console/{path.name}" for path in FILES}
    for path in SCRIPTS:
        imported = re.findall(r'from "([^"]+)"', path.read_text())
        assert {f"./{found.name}" for found in FILES} >= set(imported), path


def test_nothing_inline_and_no_other_origin():
    page = (FOLDER / "index.html").read_text()
    assert re.findall(r"<style|<script(?![^>]*\ssrc=)|\sstyle=|\son\w+=|javascript:", page) == []
    for path in FILES:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"^\s*//.*$|^\s*/\*\*.*$", "", text, flags=re.MULTILINE), path


def test_scripts_never_turn_text_into_markup_or_code():
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|setHTML"
    )
    for path in SCRIPTS:
        assert re.findall(forbidden, path.read_text()) == [], path


def colours(theme: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", theme))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_edges_can_be_seen(scheme):
    light, dark = (FOLDER / "style.css").read_text().split("prefers-color-scheme: dark", 1)
    theme = colours(light if scheme == "light" else dark)
    assert len(theme) == 10
    for ground in (theme["ground"], theme["raised"]):
        for name in ("ink", "quiet", "accent", "good", "bad"):
            assert contrast(theme[name], ground) >= 4.5, (name, ground)
        assert contrast(theme["edge"], ground) >= 3, ground
    assert contrast(theme["on-accent"], theme["accent"]) >= 4.5


def test_contrast_is_the_standards():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_picture_in_the_docs_is_small():
    assert "](console.png)" in (ROOT / "docs/console.md").read_text()
    picture = (ROOT / "docs/console.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 200_000
