"""Which directories an adapter may be loaded from over HTTP.

Runs in: API process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from shadow_server.engine import runtime_errors
from shadow_server.errors import ApiError

_MAX_FILES = 256
_MAX_PATH_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class AdapterPath:
    """An existing path below a root.

    Attributes:
        real: where it is, links followed.
        shown: what a client may be told about it: relative to its root.
    """

    real: str
    shown: str


def resolve_adapter_path(text: str, roots: Sequence[str], param: str = "path") -> AdapterPath:
    """Return the existing file or directory below one of `roots` that `text` means.

    Symbolic links are followed first and judged by where they end, those of the files directly in a
    directory too. A relative path is looked up below each root in turn. The text is taken as given:
    nothing is decoded, expanded, trimmed or normalised to another unicode form. Whether something
    exists outside the roots cannot be told from the answer, which is why `..` is refused wherever it
    leads: `x/../../root/a` would tell whether `x` is a link.

    Args:
        text: the client's path.
        roots: real paths.
        param: the request field, for errors.

    Raises:
        ApiError: 400 for what cannot be a path, 403 outside the roots.
        AdapterNotFoundError: inside the roots, but nothing is there.
    """
    _check_text(text, param)
    if not roots:
        raise _forbidden("no directory is open to it; start the server with --adapter-root", param)
    if ".." in text.split("/"):
        raise _forbidden("the path holds '..'", param)
    inside = [
        (path, root)
        for path in (_real_path(os.path.join(root, text)) for root in roots)
        for root in roots
        if path is not None and _is_below(path, root)
    ]
    if not inside:
        raise _forbidden("the path is outside the adapter roots", param)
    found = next((pair for pair in inside if os.path.exists(pair[0])), None)
    if found is None:
        raise runtime_errors.AdapterNotFoundError(f"Nothing is at the given '{param}'")
    path, root = found
    _check_links(path, roots, param)
    return AdapterPath(path, os.path.relpath(path, root))


def _check_text(text: str, param: str) -> None:
    is_path = bool(text) and "\0" not in text and len(text) <= _MAX_PATH_CHARACTERS
    if is_path:
        try:
            os.fsencode(text)
        except UnicodeEncodeError:  # a lone surrogate has no bytes
            is_path = False
    if not is_path:
        raise ApiError.of("adapter_path_invalid", f"'{param}' is not a path", param=param)


def _real_path(path: str) -> str | None:
    try:
        return os.path.realpath(path)
    except OSError:
        return None


def _check_links(path: str, roots: Sequence[str], param: str) -> None:
    if not os.path.isdir(path):
        return
    with _scan(path, param) as entries:
        for count, entry in enumerate(entries):
            if count == _MAX_FILES:
                raise _forbidden(f"the directory holds more than {_MAX_FILES} files", param)
            if entry.is_symlink() and not _is_inside(os.path.realpath(entry.path), roots):
                raise _forbidden("a file in it is a link out of the adapter roots", param)


def _scan(path: str, param: str) -> os._ScandirIterator[str]:
    try:
        return os.scandir(path)
    except OSError:  # not readable, or gone since it was looked up
        raise runtime_errors.AdapterNotFoundError(
            f"Nothing that can be read is at the given '{param}'"
        ) from None


def _is_inside(path: str, roots: Sequence[str]) -> bool:
    return any(_is_below(path, root) for root in roots)


def _is_below(path: str, root: str) -> bool:
    # By whole components: "/roots-of-others" starts with "/roots" and is not below it.
    return os.path.commonpath((path, root)) == root


def _forbidden(reason: str, param: str) -> ApiError:
    return ApiError.of(
        "adapter_path_forbidden", f"Loading this adapter is refused: {reason}", param=param
    )
