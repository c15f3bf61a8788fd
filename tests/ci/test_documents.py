"""What documents point to exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
_PATH = re.compile(
    r"`((?:tests|docs|shadow_runtime|server|kernels|benchmarks|clients|helm)/[\w./-]+)`"
)
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_and_links_exist(document):
    text = document.read_text()
    named = {ROOT / path for path in _PATH.findall(text) if "..." not in path}
    linked = {document.parent / path for path in _LINK.findall(text)}
    assert [str(path) for path in sorted(named | linked) if not path.exists()] == []
