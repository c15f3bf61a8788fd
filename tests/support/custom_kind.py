"""What the chart may say in kinds that Kubernetes does not have itself.

Written from the API references of Gateway API v1, its Inference Extension v1, KEDA and the Prometheus operator: the
fields that the chart uses, and those that its values pass on, each with its bounds. No package brings the whole schemas
to every supported Python. A field that is missing here is refused: who uses a new one looks it up first.
"""

from __future__ import annotations

from typing import Any

import jsonschema

Schema = dict[str, Any]


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": required | (optional or {}),
    }


def _list(item: Schema, least: int, most: int) -> Schema:
    return {"type": "array", "items": item, "minItems": least, "maxItems": most}


def _text(pattern: str, most: int = 253) -> Schema:
    # \Z and not $: a newline at the end is no part of a name.
    return {"type": "string", "minLength": 1, "maxLength": most, "pattern": rf"^(?:{pattern})\Z"}


def _number(least: int, most: int = 2**31 - 1) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most}


_DNS = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DOMAIN = rf"{_DNS}(\.{_DNS})*"
_LABEL_NAME = _text(_DNS, 63)
_OBJECT_NAME = _text(_DOMAIN)
_GROUP = {"type": "string", "maxLength": 253, "pattern": rf"^({_DOMAIN})?\Z"}
_KIND = _text(r"[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?", 63)
_PORT = _number(1, 65535)
_LABEL_KEY = rf"^({_DOMAIN}/)?[A-Za-z0-9]([-\w.]{{0,61}}[A-Za-z0-9])?\Z"
_LABELS = {
    "type": "object",
    "propertyNames": {"pattern": _LABEL_KEY},
    "additionalProperties": {
        "type": "string",
        "pattern": r"^([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?\Z",
    },
}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_SELECTOR = _object({"matchLabels": {**_LABELS, "minProperties": 1}})
_PROMETHEUS_DURATION = _text(
    r"0|([0-9]+y)?([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?"
)

_PARENT = _object(
    {"name": _OBJECT_NAME},
    {
        "group": _GROUP,
        "kind": _KIND,
        "namespace": _LABEL_NAME,
        "sectionName": _OBJECT_NAME,
        "port": _PORT,
    },
)
_SERVICE_BACKEND = _object({"name": _LABEL_NAME, "port": _PORT})
_OTHER_BACKEND = _object({"group": _text(_DOMAIN), "kind": _KIND, "name": _OBJECT_NAME})
_ROUTE_RULE = _object(
    {
        "matches": _list(
            _object(
                {"path": _object({"type": {"const": "PathPrefix"}, "value": _text("/.*", 1024)})}
            ),
            1,
            64,
        ),
        "backendRefs": _list({"oneOf": [_SERVICE_BACKEND, _OTHER_BACKEND]}, 1, 16),
    },
    {"timeouts": _object({"request": _text("([0-9]{1,5}(h|m|s|ms)){1,4}")})},
)
_ROUTE = _object(
    {"parentRefs": _list(_PARENT, 1, 32), "rules": _list(_ROUTE_RULE, 1, 16)},
    {"hostnames": _list(_text(rf"(\*\.)?{_DOMAIN}"), 1, 16)},
)

_POOL = _object(
    {
        "selector": _SELECTOR,
        "targetPorts": _list(_object({"number": _PORT}), 1, 8),
        "endpointPickerRef": _object(
            # The port may be left out only for a picker that is no Service.
            {"name": _OBJECT_NAME, "port": _object({"number": _PORT})},
            {"failureMode": {"enum": ["FailOpen", "FailClose"]}},
        ),
    }
)

_SCALING_POLICY = _object(
    {
        "type": {"enum": ["Pods", "Percent"]},
        "value": _number(1),
        "periodSeconds": _number(1, 1800),
    }
)
_SCALE_DOWN = _object(
    {"stabilizationWindowSeconds": _number(0, 3600)},
    {"policies": _list(_SCALING_POLICY, 1, 10)},
)
_BEHAVIOR = _object({"scaleDown": _SCALE_DOWN})
_PROMETHEUS_TRIGGER = _object(
    {
        "type": {"const": "prometheus"},
        # KEDA takes texts only, numbers and booleans included.
        "metadata": _object(
            {
                "serverAddress": _text("https?://.+", 1024),
                "query": _text(".+", 4096),
                "threshold": _text(r"[0-9]+(\.[0-9]+)?"),
            },
            {"ignoreNullValues": {"enum": ["true", "false"]}},
        ),
    }
)
_SCALED_OBJECT = _object(
    {
        "scaleTargetRef": _object({"name": _OBJECT_NAME}),
        "triggers": _list(_PROMETHEUS_TRIGGER, 1, 100),
    },
    {
        "minReplicaCount": _number(0),
        "maxReplicaCount": _number(1),
        "cooldownPeriod": _number(0),
        "advanced": _object({"horizontalPodAutoscalerConfig": _object({"behavior": _BEHAVIOR})}),
    },
)

_SECRET_KEY = _object({"name": _OBJECT_NAME, "key": _text(r"[-\w.]+")})
_ENDPOINT = _object(
    {"port": _text(_DNS, 15), "path": _text("/.*", 1024)},
    {
        "interval": _PROMETHEUS_DURATION,
        "authorization": _object({"type": {"const": "Bearer"}, "credentials": _SECRET_KEY}),
    },
)
_SERVICE_MONITOR = _object({"selector": _SELECTOR, "endpoints": _list(_ENDPOINT, 1, 100)})

_RULE = {
    **_object(
        {"expr": _text(r"[\s\S]+", 10_000)},
        {
            "alert": _text(".+"),
            "record": _text("[a-zA-Z_:][a-zA-Z0-9_:]*"),
            "for": _PROMETHEUS_DURATION,
            "keep_firing_for": _PROMETHEUS_DURATION,
            "labels": _TEXTS,
            "annotations": _TEXTS,
        },
    ),
    "oneOf": [{"required": ["alert"]}, {"required": ["record"]}],
}
_RULE_GROUP = _object(
    {"name": _text(".+")},
    {
        "rules": _list(_RULE, 0, 1000),
        "interval": _PROMETHEUS_DURATION,
        "limit": _number(0),
        "labels": _TEXTS,
        "partial_response_strategy": {"enum": ["abort", "warn"]},
    },
)
_PROMETHEUS_RULE = _object({"groups": _list(_RULE_GROUP, 0, 1000)})

_METADATA = _object({"name": _OBJECT_NAME}, {"labels": _LABELS, "annotations": _TEXTS})


def _kind(version: str, kind: str, spec: Schema) -> Schema:
    return _object(
        {
            "apiVersion": {"const": version},
            "kind": {"const": kind},
            "metadata": _METADATA,
            "spec": spec,
        }
    )


CUSTOM_KINDS = {
    "HTTPRoute": _kind("gateway.networking.k8s.io/v1", "HTTPRoute", _ROUTE),
    "InferencePool": _kind("inference.networking.k8s.io/v1", "InferencePool", _POOL),
    "PrometheusRule": _kind("monitoring.coreos.com/v1", "PrometheusRule", _PROMETHEUS_RULE),
    "ScaledObject": _kind("keda.sh/v1alpha1", "ScaledObject", _SCALED_OBJECT),
    "ServiceMonitor": _kind("monitoring.coreos.com/v1", "ServiceMonitor", _SERVICE_MONITOR),
}
"""JSON schema of each kind, by its name."""

_KEYED_LISTS = {"PrometheusRule": ("groups", "name"), "InferencePool": ("targetPorts", "number")}


def check_custom(made: dict[str, Any]) -> None:
    """Raise jsonschema.ValidationError for an object of a custom kind that its API would refuse."""
    kind = str(made.get("kind"))
    if kind not in CUSTOM_KINDS:
        raise jsonschema.ValidationError(f"no custom kind: {kind}")
    jsonschema.Draft202012Validator(CUSTOM_KINDS[kind]).validate(made)
    if keyed := _KEYED_LISTS.get(kind):
        items = [item[keyed[1]] for item in made["spec"][keyed[0]]]
        if len(set(items)) < len(items):
            raise jsonschema.ValidationError(f"{keyed[0]}: two have the same {keyed[1]}")
