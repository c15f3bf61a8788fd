"""Where files are, how they are called, and what their text must not name."""

import re

import pytest

from source_tree import ROOT, read_text, repository_files

PLAIN_FOLDERS = ("clients", "kernels", "server", "tests")
VAGUE_STEMS = {"common", "helper", "helpers", "manager", "misc", "util", "utils"}

# Paths of the machine that a change was written on mean nothing to a reader. The brackets keep this file out.
MACHINE_PATH = re.compile(
    r"(?<![\w.~])[/]work/|(?<![\w-])shared[/]|(?<!\w)\.librar[y]\b|(?<!\w)[/]tmp/(?:e|spec)/"
)


@pytest.mark.parametrize("folder", PLAIN_FOLDERS)
def test_top_level_folder_is_not_a_package(folder: str):
    # `kernels` is also a package that transformers imports when it is there: ours must not answer to that name.
    assert not (ROOT / folder / "__init__.py").exists()


def test_tests_have_no_packages():
    assert [
        p for p in repository_files() if p.parts[0] == "tests" and p.name == "__init__.py"
    ] == []


def test_transformers_does_not_take_our_kernels_folder_for_the_package():
    transformers = pytest.importorskip("transformers")

    assert not transformers.utils.is_kernels_available()


def test_no_file_has_a_vague_name():
    assert [p for p in repository_files() if p.suffix == ".py" and p.stem in VAGUE_STEMS] == []


def test_no_file_names_the_machine_it_was_written_on():
    found = [
        f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {match.group()}"
        for path in repository_files()
        if (text := read_text(path)) is not None
        for match in MACHINE_PATH.finditer(text)
    ]

    assert found == []


@pytest.mark.parametrize(
    "text", ["see /work" + "/x", "../shared" + "/docs", "a .librar" + "y file"]
)
def test_machine_paths_are_recognised(text: str):
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize(
    "text", ["https://a.org/work/b", "framework/x", "is_shared", "torch.librar" + "y.Library"]
)
def test_ordinary_words_are_not_machine_paths(text: str):
    assert not MACHINE_PATH.search(text)
