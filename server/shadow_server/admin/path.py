"""Which directories an adapter may be loaded from over HTTP.

Runs in: API process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from shadow_server.engine import runtime_errors
from shadow_server.errors import ApiError

_MAX_FILES = 256


def resolve_adapter_path(text: str, roots: Sequence[str], param: str = "path") -> str:
    """Return the real path of an existing file or directory below one of `roots`.

    Symbolic links are followed first and judged by where they end, those of the files directly in a
    directory too. A relative path is looked up below each root in turn. Nothing is told about what
    exists outside the roots.

    Args:
        text: the client's path.
        roots: real paths.
        param: the request field, for errors.

    Raises:
        ApiError: 400 for what cannot be a path, 403 outside the roots.
        AdapterNotFoundError: inside the roots, but nothing is there.
    """
    if not text or "\0" in text or len(text) > 4096:
        raise ApiError(400, f"'{param}' is not a path", code="adapter_path_invalid", param=param)
    if not roots:
        raise _forbidden("no directory is open to it; start the server with --adapter-root", param)
    candidates = [os.path.realpath(os.path.join(root, text)) for root in roots]
    inside = [path for path in candidates if _is_inside(path, roots)]
    if not inside:
        raise _forbidden("the path is outside the adapter roots", param)
    found = next((path for path in inside if os.path.exists(path)), None)
    if found is None:
        raise runtime_errors.AdapterNotFoundError(f"Nothing is at the given '{param}'")
    _check_links(found, roots, param)
    return found


def _check_links(path: str, roots: Sequence[str], param: str) -> None:
    if not os.path.isdir(path):
        return
    with os.scandir(path) as entries:
        for count, entry in enumerate(entries):
            if count == _MAX_FILES:
                raise _forbidden(f"the directory holds more than {_MAX_FILES} files", param)
            if entry.is_symlink() and not _is_inside(os.path.realpath(entry.path), roots):
                raise _forbidden("a file in it is a link out of the adapter roots", param)


def _is_inside(path: str, roots: Sequence[str]) -> bool:
    return any(os.path.commonpath((path, root)) == root for root in roots)


def _forbidden(reason: str, param: str) -> ApiError:
    return ApiError(
        403,
        f"Loading this adapter is refused: {reason}",
        code="adapter_path_forbidden",
        param=param,
    )
