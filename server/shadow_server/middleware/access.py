"""Who may call which route: one table, and what it does not name is closed.

Runs in: API process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from starlette.routing import compile_path

Access = Literal["public", "user", "admin"]

ROUTE_ACCESS: dict[str, Access] = {
    # Probes: whoever runs the container asks, and has no key.
    "/health/live": "public",
    "/health/ready": "public",
    # Files that hold no data; what the page shows it asks for with its user's key.
    "/console": "public",
    "/console/{file}": "public",
    # Nothing about other tenants.
    "/health": "user",
    "/ping": "user",
    "/version": "user",
    "/openapi.json": "user",
    "/docs": "user",
    "/docs/oauth2-redirect": "user",
    "/v1/models": "user",
    "/v1/models/{name:path}": "user",
    "/v1/completions": "user",
    "/v1/chat/completions": "user",
    "/tokenize": "user",
    "/detokenize": "user",
    # The routes themselves keep tenants apart.
    "/v1/adapters": "user",
    "/v1/adapters/{name:path}": "user",
    "/v1/load_lora_adapter": "user",
    "/v1/unload_lora_adapter": "user",
    # All tenants' traffic, adapters and load.
    "/load": "admin",
    "/metrics": "admin",
    "/metrics/{path:path}": "admin",
}
"""On a server with tenants: `public` needs no key, `user` any key, `admin` an admin's."""

_PATTERNS = [
    (compile_path(path)[0], access) for path, access in ROUTE_ACCESS.items() if "{" in path
]


def find_access(path: str) -> Access | None:
    """Return who may call the route at `path`, None when the table does not have it.

    Args:
        path: as the router matches it; neither the table nor the router normalises one.
    """
    access = ROUTE_ACCESS.get(path) if "{" not in path else None
    if access is not None:
        return access
    return next((access for pattern, access in _PATTERNS if pattern.match(path)), None)


def route_path(scope: Mapping[str, Any]) -> str:
    """Return the path that the router matches: the request's, without the prefix of a proxy in front."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "")
    if prefix and path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/"):
        return path[len(prefix) :]
    return path
