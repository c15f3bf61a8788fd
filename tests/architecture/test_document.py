"""Documents keep up with the code: paths that ARCHITECTURE.md names exist, environment variables are described."""

import re

import pytest

from source_tree import ROOT, read_text, repository_files, source_files

ENVIRONMENT_NAME = re.compile(r"""["'](SHADOW_[A-Z][A-Z0-9_]*)["']""")


def change_table() -> list[list[str]]:
    """Return (change, file, test) of each row of the table under "I want to change"."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    section = re.split(r"^#+ .*I want to change.*$", text, maxsplit=1, flags=re.MULTILINE)[1]
    table = re.search(r"(?:^\|.*\n)+", section, flags=re.MULTILINE)
    assert table is not None
    rows = [row.strip("|").split("|") for row in table.group().splitlines()]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def named_paths(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def exists(path: str) -> bool:
    return any(ROOT.glob(re.sub(r"<\w+>", "*", path.rstrip("/"))))


@pytest.mark.parametrize("column", [1, 2], ids=["file", "test"])
def test_every_path_of_the_change_table_exists(column: int):
    named = [(row[0], path) for row in change_table() for path in named_paths(row[column])]

    assert [(change, path) for change, path in named if not exists(path)] == []


def test_every_change_names_a_file():
    table = change_table()

    assert len(table) >= 8
    assert [row[0] for row in table if not named_paths(row[1])] == []


def test_every_environment_variable_is_documented():
    documents = "\n".join(read_text(p) or "" for p in repository_files() if p.suffix == ".md")
    names = {name for p in source_files() for name in ENVIRONMENT_NAME.findall(read_text(p) or "")}

    assert {name for name in names if name not in documents} == set()


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "DECISIONS.md", "CHANGELOG.md", "LICENSE"]
)
def test_document_exists(name: str):
    assert (ROOT / name).stat().st_size > 0
