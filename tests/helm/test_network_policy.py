"""Nothing gets in or out of the pods but what the values configure."""

from chart import NAME, Release

DNS = {(53, "UDP"), (53, "TCP")}


def policy(values: dict, name: str = NAME) -> dict:
    return Release(values).get("NetworkPolicy", name)["spec"]


def outgoing(values: dict) -> set[tuple[int, str]]:
    rules = policy(values)["egress"]
    return {(port["port"], port["protocol"]) for rule in rules for port in rule["ports"]}


def test_nothing_leaves_by_default():
    spec = policy({})

    assert spec["egress"] == []
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}


def test_a_local_model_opens_nothing():
    assert outgoing({"model": {"name": "/models/a", "volume": {"emptyDir": {}}}}) == set()


def test_what_is_configured_opens_its_port_and_names():
    assert outgoing({"model": {"name": "org/model"}}) == DNS | {(443, "TCP")}
    assert outgoing({"hub": {"allow": ["o/*"], "endpoint": "http://hub:8081"}}) == DNS | {
        (8081, "TCP")
    }
    assert outgoing({"registry": {"url": "postgresql://u@db/s"}}) == DNS | {(5432, "TCP")}
    assert outgoing({"registry": {"url": "postgresql://u@db:6432/s"}}) == DNS | {(6432, "TCP")}
    assert outgoing({"tracing": {"endpoint": "http://otel:4317"}}) == DNS | {(4317, "TCP")}


def test_destinations_are_named_where_the_values_name_them():
    to = [{"ipBlock": {"cidr": "10.0.0.5/32"}}]
    values = {
        "registry": {"url": "postgresql://u@db/s", "egressTo": to},
        "hub": {"allow": ["o/*"]},
        "tracing": {"endpoint": "http://otel:4317", "egressTo": to},
        "networkPolicy": {
            "hubTo": to,
            "egress": [{"to": to, "ports": [{"port": 9, "protocol": "TCP"}]}],
        },
    }
    rules = policy(values)["egress"]

    assert len(rules) == 5
    assert [rule.get("to") for rule in rules[1:]] == [to] * 4


def test_without_tenants_only_the_namespace_gets_in():
    assert policy({})["ingress"][0]["from"] == [{"podSelector": {}}]
    assert "from" not in policy({"tenants": [{"name": "a"}]})["ingress"][0]
    assert "from" not in policy({"allowUnauthenticated": True})["ingress"][0]


def test_named_peers_get_in_and_the_charts_own_pods():
    peer = {"namespaceSelector": {"matchLabels": {"a": "b"}}}
    spec = policy({"networkPolicy": {"from": [peer], "metricsFrom": [peer]}})

    first, *own = spec["ingress"][0]["from"]
    assert first == peer
    assert own[0]["podSelector"]["matchLabels"]["app.kubernetes.io/instance"] == "rel"
    assert spec["ingress"][1]["from"] == [peer]


def test_jobs_and_tests_reach_the_server_only():
    spec = policy({}, f"{NAME}-scripts")
    server = Release().get("Service")["spec"]["selector"]

    assert spec["ingress"] == []
    assert [rule.get("to") for rule in spec["egress"]] == [
        None,
        [{"podSelector": {"matchLabels": server}}],
    ]
    assert policy({})["podSelector"]["matchLabels"] == server
