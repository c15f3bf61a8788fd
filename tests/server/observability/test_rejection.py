"""The counter of refusals."""

from prometheus_client import CollectorRegistry

from shadow_server.observability.rejection import NO_TENANT, RequestRejections


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
