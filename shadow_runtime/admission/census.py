"""Which adapters have unfinished requests, and what share of the engine each is owed.

Runs in: engine core. Imports neither torch nor vllm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class AdapterCensus:
    """Unfinished requests by adapter and tenant, kept up to date one request at a time.

    Invariants: an adapter or tenant is known exactly as long as one of its requests is unfinished. Adding a known
    request or removing an unknown one changes nothing. Engine-core thread only.
    """

    _members: dict[str, tuple[int, str]] = field(default_factory=dict)
    _tenants: dict[int, Counter[str]] = field(default_factory=dict)
    _tenant_weights: dict[str, float] = field(default_factory=dict)
    _weights: dict[int, float] | None = None

    @property
    def num_adapters(self) -> int:
        """Distinct adapters with an unfinished request."""
        return len(self._tenants)

    def find_adapter(self, request_id: str) -> int | None:
        """Return the adapter of an unfinished request, None for a request of the bare base."""
        member = self._members.get(request_id)
        return None if member is None else member[0]

    def add(self, request_id: str, adapter: int, tenant: str, weight: float) -> None:
        """Count a request; a tenant's weight is the one that its latest request carries."""
        if request_id in self._members:
            return
        self._members[request_id] = (adapter, tenant)
        tenants = self._tenants.setdefault(adapter, Counter())
        if tenant not in tenants or self._tenant_weights.get(tenant) != weight:
            self._weights = None
        tenants[tenant] += 1
        self._tenant_weights[tenant] = weight

    def remove(self, request_id: str) -> None:
        """Forget a request that ended."""
        member = self._members.pop(request_id, None)
        if member is None:
            return
        adapter, tenant = member
        tenants = self._tenants[adapter]
        tenants[tenant] -= 1
        if not tenants[tenant]:
            del tenants[tenant]
            self._weights = None
        if not tenants:
            del self._tenants[adapter]

    def weights(self) -> Mapping[int, float]:
        """Return each adapter's weight, the adapter that has been busy longest first.

        Two levels: a tenant's weight is divided evenly among the adapters for which it has requests, and an adapter is
        owed the sum of what its tenants give it. So a tenant gains nothing by spreading over many adapters, and an
        adapter that several tenants use (equal bytes) serves all their shares. The mean is 1, so that a quantum keeps
        its size.
        """
        if self._weights is None:
            self._weights = self._divide()
        return self._weights

    def _divide(self) -> dict[int, float]:
        spread = Counter(tenant for tenants in self._tenants.values() for tenant in tenants)
        self._tenant_weights = {tenant: self._tenant_weights[tenant] for tenant in spread}
        shares = {
            adapter: sum(self._tenant_weights[tenant] / spread[tenant] for tenant in tenants)
            for adapter, tenants in self._tenants.items()
        }
        mean = sum(shares.values()) / max(len(shares), 1)
        return {adapter: share / mean for adapter, share in shares.items()}
