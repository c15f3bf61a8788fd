"""Documents keep up with the code: paths that ARCHITECTURE.md names exist, environment variables are described."""

import re

import pytest

from source_tree import ROOT, read_text, repository_files, source_files

ENVIRONMENT_NAME = re.compile(r"""["'](SHADOW_[A-Z][A-Z0-9_]*)["']""")


def change_table() -> list[tuple[str, list[str]]]:
    """Return (change, paths) for each row of the table that starts with "I want to change"."""
    rows = []
    lines = iter((ROOT / "ARCHITECTURE.md").read_text().splitlines())
    for line in lines:
        if line.startswith("|") and "want to change" in line.lower():
            break
    for line in lines:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not set(cells[0]) <= set("-: "):
            rows.append((cells[0], re.findall(r"`([^`]+)`", cells[1])))
    return rows


def test_every_path_of_the_change_table_exists():
    missing = [
        (change, path)
        for change, paths in change_table()
        for path in paths
        if not any(ROOT.glob(re.sub(r"<\w+>", "*", path.rstrip("/"))))
    ]

    assert missing == []


def test_every_change_names_a_path():
    table = change_table()

    assert len(table) >= 8
    assert [change for change, paths in table if not paths] == []


def test_every_environment_variable_is_documented():
    documents = "\n".join(read_text(p) or "" for p in repository_files() if p.suffix == ".md")
    names = {name for p in source_files() for name in ENVIRONMENT_NAME.findall(read_text(p) or "")}

    assert {name for name in names if name not in documents} == set()


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "DECISIONS.md", "CHANGELOG.md", "LICENSE"]
)
def test_document_exists(name: str):
    assert (ROOT / name).stat().st_size > 0
