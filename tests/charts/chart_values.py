"""Values of the chart, combined so that every pair of choices occurs in at least one of few installations."""

from __future__ import annotations

import itertools
import random
from typing import Any

Values = dict[str, Any]

CHOICES: dict[str, list[Any]] = {
    "operator.replicas": [2, 1, 0],
    "operator.image.repository": ["capstan/operator", "registry.example.com:5000/team/operator"],
    "operator.image.tag": ["", "1.2.3-rc.1"],
    "operator.image.digest": ["", "sha256:" + "0" * 64],
    "operator.image.pullPolicy": ["IfNotPresent", "Always"],
    "operator.imagePullSecrets": [[], [{"name": "registry"}]],
    "operator.watchNamespace": ["", "default"],
    "operator.logLevel": ["INFO", "DEBUG"],
    "operator.allowChaos": [False, True],
    "operator.allowHostPath": [False, True],
    "operator.resources": [{"requests": {"cpu": "100m"}}, {"limits": {"cpu": "2", "memory": "2Gi"}}, {}],
    "operator.nodeSelector": [{}, {"kubernetes.io/os": "linux"}],
    "operator.tolerations": [[], [{"key": "cpu", "operator": "Exists", "effect": "NoSchedule"}]],
    "operator.affinity": [
        {},
        {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}]
                }
            }
        },
    ],
    "operator.priorityClassName": ["", "system-cluster-critical"],
    "operator.podAnnotations": [{}, {"team": "42"}],
    # One of the labels that the chart sets itself: a Deployment whose pods it does not select is refused.
    "operator.podLabels": [{}, {"team": "ml", "app.kubernetes.io/name": "other"}],
    "operator.env": [[], [{"name": "TZ", "value": "UTC"}]],
    "images.flax": ["", "registry.example.com/flax@sha256:" + "1" * 64],
    "images.deepspeed": ["", "registry.example.com/deepspeed:2"],
    "images.serve": ["", "registry.example.com/serve:2"],
    "images.bench": ["", "registry.example.com/bench:2"],
    "serviceAccount.name": ["", "own"],
    "serviceAccount.create": [True, False],
    "serviceAccount.annotations": [{}, {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}],
    "rbac.create": [True, False],
    "rbac.aggregate": [True, False],
    "podDisruptionBudget.enabled": [True, False],
    "networkPolicy.enabled": [True, False],
    "metrics.serviceMonitor.enabled": [False, True],
    "metrics.serviceMonitor.interval": ["30s", "1m"],
    "metrics.serviceMonitor.labels": [{}, {"release": "prometheus"}],
    "metrics.podMonitor.enabled": [False, True],
    "metrics.podMonitor.interval": ["15s", "1m"],
    "metrics.podMonitor.labels": [{}, {"release": "prometheus"}],
    "metrics.prometheusRule.enabled": [False, True],
    "metrics.prometheusRule.labels": [{}, {"app.kubernetes.io/part-of": "kube-prometheus"}],
    "metrics.prometheusRule.checkpointAgeSeconds": [7200, 60],
    "metrics.dashboards.enabled": [False, True],
    "metrics.dashboards.labels": [{}, {"grafana_dashboard": "yes"}],
    "metrics.dashboards.annotations": [{}, {"grafana_folder": "Capstan"}],
    "commonLabels": [{}, {"cost-center": "42", "app.kubernetes.io/part-of": "platform"}],
}
"""All that is tried of each value, the default first."""
DEFINITIONS: list[Values] = [
    {"crds": {"enabled": True, "keep": True, "annotations": {}}, "commonLabels": {"cost-center": "42"}},
    {"crds": {"enabled": True, "keep": False, "annotations": {"argocd.argoproj.io/sync-options": "Replace=true"}}},
]
"""The definitions depend on no other values; they are large, and take most of the time of an upgrade."""

_Choice = tuple[str, int]


def combinations(seed: int = 0, tries: int = 40) -> list[Values]:
    """Installations that together hold every pair of choices of two values. The same seed gives the same ones."""
    chance = random.Random(seed)
    missing = {
        pair for one, other in itertools.combinations(CHOICES, 2) for pair in itertools.product(_all(one), _all(other))
    }
    found: list[Values] = []
    while missing:
        rows = [_row(missing, chance) for _ in range(tries)]
        best = max(rows, key=lambda row: len(missing & _pairs(row)))
        missing -= _pairs(best)
        found.append(_nested(best) | {"crds": {"enabled": False}})
    return sorted(found, key=lambda values: values["crds"]["enabled"] and not values["crds"]["keep"])


def _row(missing: set[tuple[_Choice, _Choice]], chance: random.Random) -> dict[str, int]:
    """A pair that is still missing, and for the other values what adds most to it, in random order."""
    row = dict(chance.choice(sorted(missing)))
    for name in chance.sample(list(CHOICES), len(CHOICES)):
        if name not in row:
            worth = [
                (sum(_ordered((name, index), each) in missing for each in row.items()), index)
                for index in range(len(CHOICES[name]))
            ]
            most = max(worth)[0]
            row[name] = chance.choice([index for value, index in worth if value == most])
    return row


_PLACES = {name: place for place, name in enumerate(CHOICES)}


def _ordered(one: _Choice, other: _Choice) -> tuple[_Choice, _Choice]:
    return (one, other) if _PLACES[one[0]] < _PLACES[other[0]] else (other, one)


def _all(name: str) -> list[_Choice]:
    return [(name, index) for index in range(len(CHOICES[name]))]


def _pairs(row: dict[str, int]) -> set[tuple[_Choice, _Choice]]:
    ordered = [(name, row[name]) for name in CHOICES]
    return set(itertools.combinations(ordered, 2))


def _nested(row: dict[str, int]) -> Values:
    values: Values = {}
    for path, index in row.items():
        *groups, name = path.split(".")
        target = values
        for group in groups:
            target = target.setdefault(group, {})
        target[name] = CHOICES[path][index]
    return values
