"""Keys: who is not known gets no further, and who is known no further than the route's table says.

Runs in: API process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from shadow_server.errors import ApiError
from shadow_server.middleware.access import find_access, route_path
from shadow_server.tenancy.identity import SCOPE_KEY, Identity

_POLICY_VIOLATION = 1008


class KeyRing(Protocol):
    """Knows whose a key is."""

    def authenticate(self, key: str) -> Identity | None:
        """Return whom the key stands for, None when it is no valid one."""
        ...


class AuthenticationMiddleware:
    """Puts the caller's identity into the scope, or answers 401, 403 or 404 itself.

    401 comes first: without a key, a route that exists and one that does not are alike.
    """

    def __init__(
        self, app: ASGIApp, keys: KeyRing, count_refusal: Callable[[str, str | None], None]
    ) -> None:
        """Guard `app`.

        Args:
            app: what only known callers reach.
            keys: who is known.
            count_refusal: told the error's code, and the tenant, None without a valid key.
        """
        self._app = app
        self._keys = keys
        self._count_refusal = count_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through with an identity, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            # There is no WebSocket route, and so none that anyone may call.
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        elif (error := self._admit(scope)) is not None:
            await error.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> ApiError | None:
        path = route_path(scope)
        access = find_access(path)
        if access == "public":
            return None
        identity = self._identify(scope)
        if identity is None:
            self._count_refusal("invalid_api_key", None)
            return _unauthenticated()
        if access is None:
            return ApiError(404, f"No route for {scope['method']} {path[:256]}")
        if access == "admin" and identity.role != "admin":
            self._count_refusal("admin_required", identity.tenant)
            return ApiError.of("admin_required", "This route needs an admin's key")
        scope[SCOPE_KEY] = identity
        return None

    def _identify(self, scope: Scope) -> Identity | None:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, key = (given[0] if len(given) == 1 else b"").partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        return self._keys.authenticate(key.strip(b" ").decode("latin-1"))


def _unauthenticated() -> ApiError:
    return ApiError.of(
        "invalid_api_key",
        "A valid key is needed: Authorization: Bearer <key>",
        headers={"www-authenticate": "Bearer"},
    )
