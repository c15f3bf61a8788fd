"""Who asks: the tenant and role that a request's key stands for.

Runs in: API process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shadow_server.engine import DEFAULT_TENANT, AdapterName
from shadow_server.tenancy.quota import NO_QUOTAS, TenantQuotas

Role = Literal["user", "admin"]

SCOPE_KEY = "shadow.identity"
"""Where the authentication middleware puts the identity in an ASGI scope."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The authenticated caller.

    Attributes:
        tenant: home of its short adapter names.
        role: `user` reaches its own tenant's adapters; `admin` names any in full and reads the operator's routes.
        key_id: public part of the key, for logs; None without authentication.
        can_use_base: may ask the bare base model.
        weight: share of contended slots, over 0.
        cache_salt: of the tenant's prefix blocks, None on a server without tenants.
        quotas: the tenant's limits.
    """

    tenant: str = DEFAULT_TENANT
    role: Role = "admin"
    key_id: str | None = None
    can_use_base: bool = True
    weight: float = 1.0
    cache_salt: str | None = None
    quotas: TenantQuotas = NO_QUOTAS

    def can_reach(self, name: AdapterName) -> bool:
        """Return whether the caller may know that the adapter exists."""
        return self.role == "admin" or name.tenant == self.tenant


ANONYMOUS = Identity()
"""Everyone on a server without tenants."""


def identity_of(scope: Mapping[str, Any]) -> Identity:
    """Return the caller of an ASGI scope; everyone is `ANONYMOUS` where no middleware said otherwise."""
    found = scope.get(SCOPE_KEY)
    return found if isinstance(found, Identity) else ANONYMOUS
