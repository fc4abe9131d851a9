"""The custom kinds of the battery."""

from __future__ import annotations

from typing import Any

from tests.apiserver.client import Api, Json, eventually

GROUP = "battery.example.com"

_ITEM = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "value": {"type": "string"},
        "weight": {"type": "integer", "default": 1},
    },
}

WIDGET_SPEC: Json = {
    "type": "object",
    "description": "What the widget should be.",
    "required": ["size"],
    "properties": {
        "size": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 10, "description": "How big it is."},
        "color": {"type": "string", "enum": ["red", "green"], "default": "red"},
        "title": {"type": "string", "maxLength": 8, "pattern": "^[a-z]+$"},
        "ratio": {"type": "number", "nullable": True},
        "replicas": {"type": "integer", "default": 1},
        "items": {
            "type": "array",
            "maxItems": 3,
            "items": _ITEM,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
        },
        "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
        "steps": {"type": "array", "items": {"type": "string"}},
        "limits": {"type": "object", "additionalProperties": {"type": "integer"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "nested": {
            "type": "object",
            "default": {},
            "properties": {"level": {"type": "integer", "default": 3}, "on": {"type": "boolean"}},
        },
        "started": {"type": "string", "format": "date-time"},
    },
}

WIDGET_STATUS: Json = {
    "type": "object",
    "properties": {
        "phase": {"type": "string"},
        "replicas": {"type": "integer"},
        "selector": {"type": "string"},
        "observedGeneration": {"type": "integer"},
    },
}


def crd(kind: str, plural: str, spec: Json, status: Json, **version: Any) -> Json:
    schema = {"type": "object", "properties": {"spec": spec, "status": status}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [plural[0] + plural[-2]],
                "categories": ["battery"],
            },
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                }
                | version
            ],
        },
    }


WIDGET_CRD = crd(
    "Widget",
    "widgets",
    WIDGET_SPEC,
    WIDGET_STATUS,
    subresources={
        "status": {},
        "scale": {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    },
    additionalPrinterColumns=[
        {"name": "Size", "type": "integer", "jsonPath": ".spec.size", "description": "How big it is."},
        {"name": "Color", "type": "string", "jsonPath": ".spec.color"},
        {"name": "Level", "type": "integer", "jsonPath": ".spec.nested.level", "priority": 1},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ],
)

GAUGE_CRD = crd(
    "Gauge",
    "gauges",
    {
        "type": "object",
        "required": ["low", "high"],
        "properties": {
            "low": {"type": "integer"},
            "high": {"type": "integer"},
            "unit": {
                "type": "string",
                "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "unit is immutable"}],
            },
            "port": {"x-kubernetes-int-or-string": True},
            "names": {"type": "array", "maxItems": 10, "items": {"type": "string", "maxLength": 20}},
        },
        "x-kubernetes-validations": [
            {"rule": "self.low <= self.high", "message": "low must not exceed high", "fieldPath": ".low"},
            {
                "rule": "!has(self.names) || self.names.all(n, n.startsWith('g-'))",
                "messageExpression": "'names must start with g-, not ' + self.names.filter(n, !n.startsWith('g-'))[0]",
            },
        ],
    },
    {"type": "object", "properties": {"reading": {"type": "integer"}}},
)


def widget(name: str, **spec: Any) -> Json:
    """A Widget; `size` is 1 unless told otherwise."""
    return {
        "apiVersion": f"{GROUP}/v1",
        "kind": "Widget",
        "metadata": {"name": name},
        "spec": {"size": 1} | spec,
    }


def gauge(name: str, **spec: Any) -> Json:
    return {"apiVersion": f"{GROUP}/v1", "kind": "Gauge", "metadata": {"name": name}, "spec": spec}


async def install(api: Api, definition: Json) -> None:
    """Creates the definition, or finds it there, and returns once its kind is served."""
    answer = await api.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
    assert answer.status in (201, 409), answer
    spec = definition["spec"]
    path = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"

    async def is_served() -> bool:
        return (await api.get(path, limit=1)).status == 200

    await eventually(is_served, f"{path} is served")
