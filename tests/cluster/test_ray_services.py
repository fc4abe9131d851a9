"""What KubeRay says of a RayService, and what we believe of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from capstan_operator.cluster.ray_services import decode_ray_service, observe_ray_service
from capstan_operator.observe_serving import ObservedRayService

READY = {"type": "Ready", "status": "True", "reason": "NonZeroServeEndpoints"}
ACTIVE = {"rayClusterName": "digits-abcde", "applicationStatuses": {"capstan": {"status": "RUNNING"}}}
SERVING: dict[str, Any] = {
    "observedGeneration": 4,
    "serviceStatus": "Running",
    "numServeEndpoints": 2,
    "conditions": [READY, {"type": "UpgradeInProgress", "status": "False", "reason": "NoPendingCluster"}],
    "activeServiceStatus": ACTIVE,
    "pendingServiceStatus": {},
}


def seen(**status: Any) -> ObservedRayService:
    metadata = {"uid": "4a1", "generation": 4, "labels": {"capstan.dev/revision": "digits-0badcafe"}}
    spec = {"rayClusterDeletionDelaySeconds": 7}
    return observe_ray_service(decode_ray_service(json.dumps({"metadata": metadata, "spec": spec, "status": status})))


def test_all_that_is_known_of_one_that_serves() -> None:
    assert seen(**SERVING) == ObservedRayService("4a1", "digits-0badcafe", 7, True, 2, "RUNNING", None)


def test_nothing_is_known_of_one_that_kuberay_has_not_seen() -> None:
    assert seen() == ObservedRayService("4a1", "digits-0badcafe", 7)


@pytest.mark.parametrize(
    "change",
    [
        {"observedGeneration": 3},
        {"activeServiceStatus": {}},
        {"pendingServiceStatus": {"rayClusterName": "digits-fghij"}},
        {"conditions": [READY, {"type": "UpgradeInProgress", "status": "True", "reason": "x"}]},
    ],
    ids=["an older one was seen", "no cluster has the traffic", "another is to have it", "it is being moved"],
)
def test_what_has_the_traffic_may_be_another_revision_than_is_asked_for(change: dict[str, Any]) -> None:
    assert not seen(**{**SERVING, **change}).is_settled


def test_versions_without_conditions_are_understood() -> None:
    assert seen(**{**SERVING, "conditions": None}).is_settled


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"conditions": [READY | {"status": "False", "reason": "ValidationFailed", "message": "too\n long"}]},
            "ValidationFailed: too long",
        ),
        ({"conditions": [READY | {"status": "False", "reason": "ZeroServeEndpoints", "message": "none"}]}, None),
        (
            {
                "pendingServiceStatus": {
                    "applicationStatuses": {"capstan": {"status": "DEPLOY_FAILED", "message": "no"}}
                }
            },
            "DEPLOY_FAILED: no",
        ),
        ({"activeServiceStatus": {"applicationStatuses": {"capstan": {"status": "UNHEALTHY"}}}}, "UNHEALTHY"),
        ({"activeServiceStatus": {"applicationStatuses": {"other": {"status": "UNHEALTHY"}}}}, None),
    ],
)
def test_what_keeps_it_from_going_on_is_told_in_one_line(change: dict[str, Any], problem: str | None) -> None:
    assert seen(**{**SERVING, **change}).problem == problem
