"""The console: one page at /console, and the files that it is made of.

Runs in: API process. The files hold no data and no key, so anyone may have them; whatever the page shows it asks the
API for, with the key that its user typed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePath

from fastapi import APIRouter
from starlette.responses import Response

from shadow_server.errors import ApiError

PAGE = "index.html"
MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
"""What the console's files are, by the end of their name; other files are not served."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Text of others stays text: the browser itself refuses to parse a string as markup.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Nothing inline, nothing from elsewhere, nothing sent elsewhere, no frame around it."""

HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class ConsoleFile:
    """One file as it is sent."""

    content: bytes
    media_type: str

    def response(self) -> Response:
        """Return the answer that carries it."""
        return Response(self.content, headers=HEADERS, media_type=self.media_type)


def console_router() -> APIRouter:
    """Return /console and what lies below it; the files are read once."""
    known = read_console()
    router = APIRouter()

    async def page() -> Response:
        return known[PAGE].response()

    async def file(file: str) -> Response:
        found = known.get(file)
        if found is None or file == PAGE:
            raise ApiError.of("not_found", "The console has no such file")
        return found.response()

    router.add_api_route("/console", page, response_model=None)
    router.add_api_route("/console/{file}", file, response_model=None)
    return router


def read_console() -> Mapping[str, ConsoleFile]:
    """Return the console's files by name."""
    folder = files("shadow_server") / "console"
    return {
        file.name: ConsoleFile(file.read_bytes(), MEDIA_TYPES[PurePath(file.name).suffix])
        for file in folder.iterdir()
        if PurePath(file.name).suffix in MEDIA_TYPES
    }
