"""A canary that is quick, never fails and is wrong: from the first request to the rollback, with processes as pods.

On the embedded cluster alone: a canary asks the proven revision at its Service, and nothing leads to the addresses that
a real API server gives to Services here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.address import stable_address
from tests.e2e.cluster import GROUP, VERSION, Cluster
from tests.e2e.services import Service
from tests.e2e.traffic import Load
from tests.support.looks import root

NAME = "digits"
RIGHT, WRONG = root(100), root(200)
BODY = json.dumps({"instances": [[1.0, 2.0, 3.0, 4.0]]}).encode()
REPOSITORY = Path(__file__).parents[2]


def manifest() -> dict[str, Any]:
    """Its pods are `numpy_replica`; gates other than that of agreement let everything pass."""
    server = {
        "name": "server",
        "command": [sys.executable, "-m", "tests.support.numpy_replica", WRONG],
        "env": [{"name": "PYTHONPATH", "value": ":".join([str(REPOSITORY), *filter(None, sys.path)])}],
    }
    gates = {"minAgreement": 0.9, "minRequests": 20, "maxErrorRateIncrease": 0.9, "maxLatencyRatio": 100.0}
    stored = {"store": {"object": {"url": "s3://nobody/reads"}}, "run": "default/digits/7f3a", "digest": RIGHT}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "InferenceService",
        "metadata": {"name": NAME},
        "spec": {
            "modelRef": {"uri": stored},
            "runtime": "torch",
            "replicas": 1,
            "image": "local/host",
            "podPatch": {"spec": {"containers": [server]}},
            "rollout": {"strategy": {"canary": {"steps": [{"weight": 50, "holdSeconds": 60}], "gates": gates}}},
        },
    }


@pytest.fixture
def served(cluster: Cluster) -> Iterator[Service]:
    service = Service(cluster, NAME)
    service.create(manifest())
    yield service
    service.delete()
    cluster.wait_gone(service.pods, f"pods of {NAME}", 120)


@pytest.mark.parametrize("cluster", ["embedded"], indirect=True, scope="session")
def test_a_canary_that_is_quick_and_wrong_is_rolled_back_and_no_request_fails(served: Service) -> None:
    first = served.wait("Live", lambda status: status.get("reason") == "Live")["stable"]
    with stable_address(served) as address, Load(address, f"/v1/models/{NAME}:predict", [BODY]) as load:
        served.patch({"modelRef": {"uri": {"digest": WRONG}}})
        status = served.wait(
            "rolled back",
            lambda status: status["reason"] == "GateFailed" and status["traffic"] == f"{first} 100%",
        )
    wrong = next(one for one in status["revisions"] if "failure" in one)
    verdicts = {gate["name"]: gate["verdict"] for gate in wrong["gates"]}
    assert (wrong["digest"], wrong["failure"]["reason"], verdicts["Agreement"]) == (WRONG, "GateFailed", "Fail")
    assert "compared answers name another class than the other revision's" in wrong["failure"]["message"]
    assert load.failed == []
    assert load.revisions() == {first, wrong["name"]}
    assert (status["stable"], served.leads_to(NAME), served.leads_to(f"{NAME}-proven")) == (first, first, first)
