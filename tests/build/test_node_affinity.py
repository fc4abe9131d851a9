"""Pods are kept away from nodes without taking anything back from what the user asked for."""

from __future__ import annotations

import copy
from typing import Any

from capstan_operator.build.node_affinity import PREFERRED, REQUIRED, keep_away

GPU = {"key": "accelerator", "operator": "In", "values": ["h200"]}
ZONE = {"key": "zone", "operator": "In", "values": ["b"]}


def not_on(node: str) -> dict[str, Any]:
    return {"key": "metadata.name", "operator": "NotIn", "values": [node]}


def test_a_template_without_affinity_gets_one() -> None:
    template = {"metadata": {}, "spec": {"containers": []}}
    away = keep_away(template, never=["n1", "n2"], rather_not=["n3"])
    assert away["spec"]["affinity"] == {
        "nodeAffinity": {
            REQUIRED: {"nodeSelectorTerms": [{"matchFields": [not_on("n1"), not_on("n2")]}]},
            PREFERRED: [{"weight": 100, "preference": {"matchFields": [not_on("n3")]}}],
        }
    }


def test_every_alternative_of_the_user_keeps_away_too_and_the_rest_stays() -> None:
    wishes = [{"weight": 5, "preference": {"matchExpressions": [ZONE]}}]
    affinity = {
        "podAntiAffinity": {"x": 1},
        "nodeAffinity": {
            REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": [GPU]}, {"matchFields": [not_on("n9")]}]},
            PREFERRED: wishes,
        },
    }
    template = {"metadata": {}, "spec": {"affinity": affinity}}
    before = copy.deepcopy(template)
    away = keep_away(template, never=["n1"], rather_not=[])
    assert away["spec"]["affinity"] == {
        "podAntiAffinity": {"x": 1},
        "nodeAffinity": {
            REQUIRED: {
                "nodeSelectorTerms": [
                    {"matchExpressions": [GPU], "matchFields": [not_on("n1")]},
                    {"matchFields": [not_on("n9"), not_on("n1")]},
                ]
            },
            PREFERRED: wishes,
        },
    }
    assert template == before, "the template that all pods share was changed"


def test_nothing_to_keep_away_from_changes_nothing_that_matters() -> None:
    template = {"metadata": {}, "spec": {"containers": []}}
    assert keep_away(template, never=[], rather_not=["n1"])["spec"]["affinity"]["nodeAffinity"].keys() == {PREFERRED}
