"""The counter of refusals."""

from prometheus_client import CollectorRegistry

from shadow_server.observability.rejection import NO_TENANT, RequestRejections
from shadow_server.observability.request import MAX_TENANT_LABELS


def test_counts_by_reason_and_tenant():
    registry = CollectorRegistry()
    rejections = RequestRejections()
    registry.register(rejections)
    for reason, tenant in (
        ("rate_limit_exceeded", "acme"),
        ("rate_limit_exceeded", "acme"),
        ("invalid_api_key", None),
    ):
        rejections.count(reason, tenant)

    def value(reason, tenant):
        labels = {"reason": reason, "tenant": tenant}
        return registry.get_sample_value("shadow_requests_rejected_total", labels)

    assert value("rate_limit_exceeded", "acme") == 2
    assert value("invalid_api_key", NO_TENANT) == 1
    assert value("rate_limit_exceeded", NO_TENANT) is None


def test_a_thousand_tenants_share_a_bounded_number_of_labels():
    registry = CollectorRegistry()
    rejections = RequestRejections()
    registry.register(rejections)
    for number in range(1000):
        rejections.count("rate_limit_exceeded", f"t{number}")
    samples = [s for family in registry.collect() for s in family.samples]
    assert len(samples) == MAX_TENANT_LABELS + 1
    assert sum(s.value for s in samples) == 1000
