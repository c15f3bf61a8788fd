"""Objects of kinds that Kubernetes does not have itself are what their APIs take."""

import copy

import jsonschema
import pytest

from chart import VALUES_FILES, Release, read_values
from custom_kind import CUSTOM_KINDS, check_custom

MADE = [
    (path.stem.removesuffix("-values"), made)
    for path in VALUES_FILES
    for made in Release(read_values(path)).objects
    if made["kind"] in CUSTOM_KINDS
]
BY_KIND = {made["kind"]: made for _, made in MADE}


@pytest.mark.parametrize(("place", "made"), MADE, ids=[f"{p}-{m['kind']}" for p, m in MADE])
def test_objects_are_what_their_apis_take(place, made):
    check_custom(made)


def test_every_kind_is_made_by_a_values_file():
    assert BY_KIND.keys() == CUSTOM_KINDS.keys()


@pytest.mark.parametrize(
    "values",
    [
        {"httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}]}},
        {
            "httpRoute": {
                "enabled": True,
                "parentRefs": [
                    {"name": "g", "namespace": "n", "sectionName": "https", "port": 443}
                ],
                "hostnames": ["*.example.org"],
            }
        },
        {"metrics": {"serviceMonitor": {"enabled": True, "interval": "1m"}}},
        {
            "metrics": {
                "prometheusRule": {
                    "enabled": True,
                    "extraGroups": [{"name": "own", "rules": [{"record": "a:b", "expr": "c"}]}],
                }
            }
        },
    ],
)
def test_other_values_are_taken_too(values):
    objects = Release(values | {"allowUnauthenticated": True}).objects
    custom = [made for made in objects if made["kind"] in CUSTOM_KINDS]

    assert custom
    for made in custom:
        check_custom(made)


def places(value, path=()):
    """Yield the path of every mapping and value below `value`."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))


def changed(made, path, change):
    """Return a copy of `made` in which `change` has been done to the parent and the key of `path`."""
    copied = copy.deepcopy(made)
    parent = copied
    for key in path[:-1]:
        parent = parent[key]
    change(parent, path[-1])
    return copied


def is_taken(made):
    try:
        check_custom(made)
    except jsonschema.ValidationError:
        return False
    return True


FREE = {"labels", "annotations", "matchLabels"}
"""Mappings whose keys are the user's."""


@pytest.mark.parametrize("kind", CUSTOM_KINDS)
def test_an_unknown_field_is_found_at_every_level(kind):
    def add(parent, key):
        parent[key]["unheardOf"] = "x"

    tried = 0
    for path in places(BY_KIND[kind]):
        here = BY_KIND[kind]
        for key in path:
            here = here[key]
        if path and isinstance(here, dict) and not FREE & set(path):
            tried += 1
            assert not is_taken(changed(BY_KIND[kind], path, add)), path
    assert tried >= 4


@pytest.mark.parametrize("kind", CUSTOM_KINDS)
def test_a_wrong_type_is_found_everywhere(kind):
    def set_list(parent, key):
        parent[key] = [[]]

    paths = [path for path in places(BY_KIND[kind]) if path]
    assert len(paths) > 10
    assert [path for path in paths if is_taken(changed(BY_KIND[kind], path, set_list))] == []


OPTIONAL = {
    "HTTPRoute": {"hostnames", "timeouts", "namespace", "labels"},
    "InferencePool": {"failureMode", "labels"},
    "ScaledObject": {
        "advanced",
        "cooldownPeriod",
        "ignoreNullValues",
        "labels",
        "maxReplicaCount",
        "minReplicaCount",
        "policies",
    },
    "ServiceMonitor": {"authorization", "interval", "labels"},
    "PrometheusRule": {"annotations", "for", "labels", "rules"},
}


@pytest.mark.parametrize("kind", CUSTOM_KINDS)
def test_a_missing_field_is_found(kind):
    def remove(parent, key):
        del parent[key]

    paths = [p for p in places(BY_KIND[kind]) if p and isinstance(p[-1], str)]
    paths = [p for p in paths if not FREE & set(p[:-1])]
    left_out = {p[-1] for p in paths if is_taken(changed(BY_KIND[kind], p, remove))}

    assert left_out <= OPTIONAL[kind]


WRONG = [
    ("HTTPRoute", ("apiVersion",), "gateway.networking.k8s.io/v1beta1"),
    ("HTTPRoute", ("spec", "rules", 0, "timeouts", "request"), "0"),
    ("HTTPRoute", ("spec", "rules", 0, "timeouts", "request"), "1d"),
    ("HTTPRoute", ("spec", "rules", 0, "matches", 0, "path", "type"), "Prefix"),
    ("HTTPRoute", ("spec", "rules", 0, "matches", 0, "path", "value"), "v1"),
    ("HTTPRoute", ("spec", "rules", 0, "backendRefs", 0), {"name": "a"}),
    ("HTTPRoute", ("spec", "rules", 0, "backendRefs", 0), {"name": "a", "port": "http"}),
    ("HTTPRoute", ("spec", "rules", 0, "backendRefs", 0), {"name": "a", "port": 65536}),
    ("HTTPRoute", ("spec", "hostnames", 0), "https://llm.example.org"),
    ("HTTPRoute", ("spec", "hostnames", 0), "LLM.example.org"),
    ("HTTPRoute", ("spec", "parentRefs"), []),
    ("HTTPRoute", ("metadata", "name"), "A"),
    ("HTTPRoute", ("metadata", "name"), "a" * 254),
    ("HTTPRoute", ("metadata", "labels"), {"a": "b c"}),
    ("HTTPRoute", ("metadata", "labels"), {"a": "b" * 64}),
    ("InferencePool", ("apiVersion",), "inference.networking.x-k8s.io/v1alpha2"),
    ("InferencePool", ("spec", "endpointPickerRef", "failureMode"), "FailClosed"),
    ("InferencePool", ("spec", "endpointPickerRef", "port"), 9002),
    ("InferencePool", ("spec", "targetPorts"), [{"number": 0}]),
    ("InferencePool", ("spec", "targetPorts"), [{"number": 1}] * 2),
    ("InferencePool", ("spec", "targetPorts"), [{"number": n} for n in range(1, 10)]),
    ("InferencePool", ("spec", "selector", "matchLabels"), {}),
    ("ScaledObject", ("spec", "triggers", 0, "metadata", "threshold"), 16),
    ("ScaledObject", ("spec", "triggers", 0, "metadata", "threshold"), "many"),
    ("ScaledObject", ("spec", "triggers", 0, "metadata", "serverAddress"), "prometheus:9090"),
    ("ScaledObject", ("spec", "triggers", 0, "metadata", "ignoreNullValues"), False),
    ("ScaledObject", ("spec", "triggers", 0, "type"), "Prometheus"),
    ("ScaledObject", ("spec", "triggers"), []),
    ("ScaledObject", ("spec", "maxReplicaCount"), "6"),
    ("ServiceMonitor", ("spec", "endpoints", 0, "interval"), "15"),
    ("ServiceMonitor", ("spec", "endpoints", 0, "interval"), "15 s"),
    ("ServiceMonitor", ("spec", "endpoints", 0, "port"), 8000),
    ("ServiceMonitor", ("spec", "endpoints"), []),
    ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "for"), "5 minutes"),
    ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "record"), "a"),
    ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "expr"), ""),
    ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "labels", "severity"), 1),
    ("PrometheusRule", ("spec", "groups"), [{"name": "a"}] * 2),
]


@pytest.mark.parametrize(
    ("kind", "path", "value"), WRONG, ids=[f"{k}-{p[-1]}-{v}"[:60] for k, p, v in WRONG]
)
def test_a_wrong_value_is_found(kind, path, value):
    def put(parent, key):
        parent[key] = value

    assert is_taken(BY_KIND[kind])
    assert not is_taken(changed(BY_KIND[kind], path, put))
