"""What the command's exit status says.

Runs in: the command's own process.
"""

from __future__ import annotations

from enum import IntEnum

from shadow_client.error import (
    ApiError,
    AuthenticationError,
    BadAnswerError,
    ConnectionFailedError,
    NotFoundError,
    PermissionDeniedError,
    ServerError,
    TooManyRequestsError,
    UnprocessableError,
)
from shadow_server.command.local import RefusedError


class ExitCode(IntEnum):
    """Exit statuses, the same for every command that talks to a server; docs/cli.md has them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    FORBIDDEN = 4
    NOT_FOUND = 5
    INVALID = 6
    BUSY = 7
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.OK: "It is done.",
    ExitCode.FAILED: "It could not be done; one sentence on standard error says why.",
    ExitCode.USAGE: "The command line is wrong; nothing was done.",
    ExitCode.UNREACHABLE: "No ShadowServe server answers at the address.",
    ExitCode.FORBIDDEN: "The key is missing, unknown, or may not do this (401, 403).",
    ExitCode.NOT_FOUND: "No adapter, version, file or folder of that name (404).",
    ExitCode.INVALID: "The adapter is not valid, or cannot be converted (422).",
    ExitCode.BUSY: "Over a rate or a quota, or the server is busy, after every retry (429, 503).",
    ExitCode.INTERRUPTED: "Ctrl-C.",
}


def exit_code_of(error: Exception) -> ExitCode:
    """Return the status that an error of the client ends a command with."""
    if isinstance(error, ConnectionFailedError | BadAnswerError):
        return ExitCode.UNREACHABLE
    if isinstance(error, FileNotFoundError | NotFoundError):
        return ExitCode.NOT_FOUND
    if isinstance(error, AuthenticationError | PermissionDeniedError):
        return ExitCode.FORBIDDEN
    if isinstance(error, RefusedError):
        is_absent = error.code == "adapter_not_found"
        return ExitCode.NOT_FOUND if is_absent else ExitCode.INVALID
    if isinstance(error, UnprocessableError):
        return ExitCode.INVALID
    is_busy = isinstance(error, ServerError) and error.status == 503
    if is_busy or isinstance(error, TooManyRequestsError):
        return ExitCode.BUSY
    return ExitCode.FAILED


def hint_of(error: Exception) -> str | None:
    """Return what to try next, None when there is nothing to suggest."""
    if isinstance(error, ConnectionFailedError | BadAnswerError):
        return "--url or SHADOW_SERVER_URL for another address; `shadowserve doctor` looks at it"
    if isinstance(error, AuthenticationError):
        return "--key-file FILE, or the key in SHADOW_SERVER_KEY"
    if not isinstance(error, ApiError | RefusedError):
        return None
    return _HINTS.get(error.code or "")


_HINTS = {
    "adapter_base_mismatch": "the base model that it was trained on, on a server of its own",
    "adapter_exists": "without --no-replace, which makes its next version",
    "adapter_not_found": "`shadowserve adapters list`, `shadowserve adapters versions NAME`",
    "adapter_path_forbidden": "`shadowserve adapters load NAME FOLDER`, which uploads; or --adapter-root of the server",
    "adapter_source_forbidden": "--hub-allow of the server",
    "admin_required": "an admin's key",
    "base_model_forbidden": "--adapter NAME",
    "insufficient_quota": "`shadowserve adapters unload NAME`, or `unpin`",
    "adapter_capacity": "`shadowserve adapters unpin NAME`, or --max-resident-adapters of the server",
}
