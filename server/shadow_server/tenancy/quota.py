"""How much of the server a tenant may have.

Runs in: API process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shadow_server.engine import CatalogQuota

if TYPE_CHECKING:
    from shadow_server.tenancy.identity import Identity

_Limit = Annotated[int, Field(ge=1, le=1 << 53)] | None


class TenantQuotas(BaseModel):
    """Limits of one tenant over all of its keys; None is no limit. Rates and requests are counted by each server.

    Attributes:
        max_adapters: names that the tenant may have.
        max_stored_bytes: bytes of its distinct digests over all versions.
        max_resident_adapters: its adapters that the engine holds in memory at once.
        max_concurrent_requests: generation requests at once.
        requests_per_minute: generation requests.
        request_burst: of those, how many may come at once; a minute's worth by default, and never more.
        tokens_per_minute: prompt and generated tokens; a minute's worth may come at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max_adapters: _Limit = None
    max_stored_bytes: _Limit = None
    max_resident_adapters: _Limit = None
    max_concurrent_requests: _Limit = None
    requests_per_minute: _Limit = None
    request_burst: _Limit = None
    tokens_per_minute: _Limit = None

    @model_validator(mode="after")
    def _check_burst(self) -> Self:
        if self.request_burst is not None and self.requests_per_minute is None:
            raise ValueError("request_burst needs requests_per_minute")
        return self


NO_QUOTAS = TenantQuotas()


def quota_of(identity: Identity) -> CatalogQuota | None:
    """Return what the registry checks when the caller publishes under its own tenant; None without limits."""
    quotas = identity.quotas
    if quotas.max_adapters is None and quotas.max_stored_bytes is None:
        return None
    return CatalogQuota(quotas.max_adapters, quotas.max_stored_bytes)
