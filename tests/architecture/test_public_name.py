"""A package says what it exports: `__all__` of each package names every public definition of its `__init__`.

Ruff has the rest: order (RUF022), exports that do not exist (F822), imports neither used nor exported (F401).
"""

import ast
from pathlib import Path

import pytest

from source_tree import ROOT, SOURCE_ROOTS, source_files

PACKAGES = [path for path in source_files() if path.name == "__init__.py"]
ROOT_PACKAGES = [(parent / name).relative_to(ROOT) for name, parent in SOURCE_ROOTS.items()]


def declared_names(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"]:
            return ast.literal_eval(node.value)
    return None


def defined_names(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in tree.body:
        match node:
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
            ):
                names.add(name)
            case ast.Assign(targets=targets):
                names.update(t.id for t in targets if isinstance(t, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return {name for name in names if not name.startswith("_")}


def has_code(tree: ast.Module) -> bool:
    return not all(isinstance(node, ast.Expr) for node in tree.body)


@pytest.mark.parametrize("path", PACKAGES, ids=str)
def test_package_exports_its_public_definitions(path: Path):
    tree = ast.parse((ROOT / path).read_text())
    declared = declared_names(tree)
    if declared is None:
        assert path.parent not in ROOT_PACKAGES or not has_code(tree), (
            "a root package needs __all__"
        )
        return

    assert len(declared) == len(set(declared))
    assert defined_names(tree) <= set(declared)


@pytest.mark.parametrize("package", ROOT_PACKAGES, ids=str)
def test_root_package_is_looked_at(package: Path):
    assert package / "__init__.py" in PACKAGES


def test_unexported_definition_is_noticed():
    tree = ast.parse("__all__ = ['a']\ndef a(): ...\ndef b(): ...\n_c = 1")

    assert defined_names(tree) - set(declared_names(tree) or []) == {"b"}
