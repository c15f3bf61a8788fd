"""How near tenants are to their quotas."""

from prometheus_client import CollectorRegistry

from shadow_server.observability.quota import QuotaGauges
from shadow_server.observability.request import MAX_TENANT_LABELS
from shadow_server.tenancy.admission import Admission
from shadow_server.tenancy.identity import Identity
from shadow_server.tenancy.limit import QuotaUse
from shadow_server.tenancy.quota import TenantQuotas


def shown(uses):
    registry = CollectorRegistry()
    registry.register(QuotaGauges(uses))
    return {
        (
            s.name.removeprefix("shadow_tenant_quota_"),
            s.labels["tenant"],
            s.labels["quota"],
        ): s.value
        for family in registry.collect()
        for s in family.samples
    }


def test_what_running_and_past_requests_take():
    now = [0.0]
    admission = Admission(8, 8, clock=lambda: now[0])
    quotas = TenantQuotas(max_concurrent_requests=3, requests_per_minute=60, tokens_per_minute=600)
    acme = Identity("acme", quotas=quotas)
    with admission.admit(acme), admission.admit(acme) as ticket, admission.admit(Identity("free")):
        ticket.take_tokens("tag", 90)
        seen = shown(admission.uses)
        assert seen["used", "acme", "max_concurrent_requests"] == 2
        assert seen["limit", "acme", "max_concurrent_requests"] == 3
        assert seen["used", "acme", "requests_per_minute"] == 2
        assert seen["used", "acme", "tokens_per_minute"] == 90
        assert seen["limit", "acme", "tokens_per_minute"] == 600
        now[0] = 1.0
        assert shown(admission.uses)["used", "acme", "tokens_per_minute"] == 80
        assert not [key for key in seen if key[1] == "free"]


def test_tenants_nearest_to_a_limit_are_shown():
    uses = {f"t{i}": [QuotaUse("requests_per_minute", i % 500, 1000)] for i in range(1000)}
    seen = shown(lambda: uses)
    assert len(seen) == 2 * MAX_TENANT_LABELS
    assert min(value for key, value in seen.items() if key[0] == "used") == 450
