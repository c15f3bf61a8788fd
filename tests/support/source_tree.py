"""The repository as architecture tests see it: its files and its Python packages."""

import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = {
    "shadow_client": ROOT / "clients",
    "shadow_kernels": ROOT / "kernels",
    "shadow_runtime": ROOT,
    "shadow_server": ROOT / "server",
}


@functools.cache
def repository_files() -> tuple[Path, ...]:
    """Return every file that is or would be committed, relative to the root; needs a git checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    names = sorted({name for name in listed.split("\0") if name})
    return tuple(Path(name) for name in names if (ROOT / name).is_file())


def read_text(path: Path) -> str | None:
    """Return a repository file's text, None when it is binary."""
    try:
        return (ROOT / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def source_files() -> list[Path]:
    """Return the Python files of the four packages, relative to the root."""
    folders = [(parent / name).relative_to(ROOT) for name, parent in SOURCE_ROOTS.items()]
    return [
        path
        for path in repository_files()
        if path.suffix == ".py" and any(path.is_relative_to(folder) for folder in folders)
    ]
