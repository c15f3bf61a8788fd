"""Values that cannot be meant are refused with a sentence that names them."""

import pytest

from chart import Release, refusal

SHARED = {
    "registry": {"url": "postgresql://u@db/s"},
    "persistence": {"accessMode": "ReadWriteMany"},
}
TENANTS = {"tenants": [{"name": "acme", "keys": [{"secretName": "s", "secretKey": "k"}]}]}
HUB_ADAPTER = {"name": "a", "hub": {"repo": "o/a", "revision": "0" * 40}}

SCHEMA_CASES = {
    "misspelled": ({"replica": 2}, "additional properties 'replica' not allowed"),
    "nested misspelled": ({"gpu": {"counts": 1}}, "at '/gpu': additional properties 'counts'"),
    "type": ({"replicas": "two"}, "at '/replicas': got string, want integer"),
    "negative": ({"gpu": {"count": -1}}, "at '/gpu/count': minimum: got -1, want 0"),
    "closed set": ({"service": {"type": "External"}}, "must be one of 'ClusterIP', 'NodePort'"),
    "quantity": ({"persistence": {"size": "20 GB"}}, "at '/persistence/size': '20 GB' does not"),
    "digest": ({"image": {"digest": "latest"}}, "at '/image/digest': 'latest' does not match"),
    "adapter name": ({"adapters": [{"name": "a b", "path": "/x"}]}, "at '/adapters/0/name'"),
    "adapter field": ({"adapters": [{"name": "a", "dir": "/x"}]}, "'dir' not allowed"),
    "moving revision": (
        {"adapters": [{"name": "a", "hub": {"repo": "o/a", "revision": "main"}}]},
        "at '/adapters/0/hub/revision': 'main' does not match",
    ),
    "key in values": (
        {"tenants": [{"name": "acme", "keys": [{"key": "sk-shadow-1"}]}]},
        "additional properties 'key' not allowed",
    ),
    "quota": ({"tenants": [{"name": "a", "quotas": {"maxAdapters": 0}}]}, "maxAdapters': minimum"),
    "burst of no rate": (
        {"tenants": [{"name": "a", "quotas": {"requestBurst": 3}}]},
        "properties 'requestsPerMinute' required",
    ),
    "option with dashes": ({"config": {"--max-model-len": 1}}, "invalid propertyName '--max-"),
}
RULE_CASES = {
    "replicas alone": ({"replicas": 2}, "replicas, autoscaling: several servers need one registry"),
    "replicas without a shared volume": (
        {"replicas": 2, "registry": {"url": "postgresql://u@db/s"}},
        "one volume (persistence.accessMode ReadWriteMany",
    ),
    "autoscaling alone": ({"autoscaling": {"type": "hpa"}}, "several servers need one registry"),
    "keda without prometheus": (
        {**SHARED, "autoscaling": {"type": "keda"}},
        "autoscaling.prometheusAddress: KEDA needs",
    ),
    "scaling range": ({"autoscaling": {"minReplicas": 9}}, "minReplicas is more than maxReplicas"),
    "password in the URL": (
        {"registry": {"url": "postgresql://u:secret@db/s"}},
        "registry.url: no password here; name a Secret in registry.passwordSecret",
    ),
    "password in the query": (
        {"registry": {"url": "postgresql://u@db/s?password=secret"}},
        "registry.url: no password here",
    ),
    "two sets of tenants": (
        {**TENANTS, "tenantsSecret": {"name": "s"}},
        "tenants, tenantsSecret: give one of them",
    ),
    "tenant twice": ({"tenants": [{"name": "a"}, {"name": "a"}]}, "tenants: a is there twice"),
    "open ingress": (
        {"ingress": {"enabled": True, "hosts": ["a.org"]}},
        "ingress.enabled: without tenants everyone who reaches the server is an admin",
    ),
    "open route": ({"httpRoute": {"enabled": True}}, "httpRoute.enabled: without tenants"),
    "open service": ({"service": {"type": "LoadBalancer"}}, "service.type: without tenants"),
    "no policy": ({"networkPolicy": {"enabled": False}}, "networkPolicy.enabled: without tenants"),
    "monitor without a key": (
        {**TENANTS, "metrics": {"serviceMonitor": {"enabled": True}}},
        "metrics.serviceMonitor: with tenants /metrics needs a key",
    ),
    "publishing without a key": (
        {**TENANTS, "adapters": [HUB_ADAPTER], "hub": {"allow": ["o/*"]}},
        "adapters: with tenants publishing and pinning need a key",
    ),
    "adapter twice": (
        {"adapters": [{"name": "a", "path": "/a"}, {"name": "a", "path": "/b"}]},
        "adapters: a is there twice",
    ),
    "adapter without a source": ({"adapters": [{"name": "a"}]}, "a needs either path or hub"),
    "adapter with two": (
        {"adapters": [HUB_ADAPTER | {"path": "/a"}], "hub": {"allow": ["o/*"]}},
        "a needs either path or hub",
    ),
    "path without a volume": (
        {"adapters": [{"name": "a", "path": "a"}]},
        "a lies below adapterVolume, which is empty",
    ),
    "path upwards": (
        {"adapters": [{"name": "a", "path": "/x/../y"}]},
        "leads out of its directory",
    ),
    "closed hub": ({"adapters": [HUB_ADAPTER]}, "a comes from the hub, and hub.allow is empty"),
    "tenant's adapter without tenants": (
        {"adapters": [{"name": "a", "tenant": "t", "path": "/a"}]},
        "t/a is a tenant's, and there are no tenants",
    ),
    "option of the chart": ({"config": {"port": 1}}, "config.port: set by service.port"),
    "key as an option": ({"config": {"api-key": "k"}}, "config.api-key: set by tenants"),
    "ingress without hosts": ({"ingress": {"enabled": True}}, "ingress.hosts: name at least one"),
    "route without a gateway": ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs: name"),
    "route to no pool": (
        {"httpRoute": {"toInferencePool": True}},
        "httpRoute.toInferencePool: inferencePool.enabled is false",
    ),
    "pool without a picker": ({"inferencePool": {"enabled": True}}, "name the picker's Service"),
}


@pytest.mark.parametrize(("values", "message"), SCHEMA_CASES.values(), ids=SCHEMA_CASES)
def test_schema_refuses_with_the_values_place(values, message):
    assert message in refusal(values)


@pytest.mark.parametrize(("values", "message"), RULE_CASES.values(), ids=RULE_CASES)
def test_contradiction_is_named(values, message):
    refused = refusal(values)

    assert "the values cannot be used:" in refused
    assert message in refused


def test_a_password_is_not_repeated():
    assert "secret@" not in refusal({"registry": {"url": "postgresql://u:secret@db/s"}})


def test_all_contradictions_are_named_at_once():
    refused = refusal({"replicas": 2, "ingress": {"enabled": True}, "config": {"port": 1}})

    assert refused.count("\n  - ") == 4


@pytest.mark.parametrize(
    "opening",
    [
        {"ingress": {"enabled": True, "hosts": ["a.org"]}},
        {"service": {"type": "LoadBalancer"}},
        {"networkPolicy": {"enabled": False}},
    ],
)
def test_openings_are_allowed_with_tenants_or_by_word(opening):
    for permission in (TENANTS, {"allowUnauthenticated": True}):
        assert Release(opening | permission).objects
