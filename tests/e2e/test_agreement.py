"""A canary that is quick, never fails and is wrong: from the first request to the rollback, with processes as pods.

On the embedded cluster alone: nothing leads to the addresses that a real API server gives to Services here.
"""

from __future__ import annotations

import http.client
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.cluster import GROUP, NAMESPACE, VERSION, Cluster, TimedOut
from tests.e2e.conftest import embedded_cluster
from tests.support.looks import root

PLURAL, NAME = "inferenceservices", "digits"
RIGHT, WRONG = root(100), root(200)
BODY = json.dumps({"instances": [[1.0, 2.0, 3.0, 4.0]]})
SECONDS = 240.0
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def alone() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="capstan-e2e-") as home, embedded_cluster(Path(home)) as cluster:
        yield cluster


def service() -> dict[str, Any]:
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


class Clients:
    """Somebody who asks all the time, each time over a new connection, and never again what failed."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).netloc
        self._is_over = threading.Event()
        self.answers: Counter[str] = Counter()
        """By revision, or by what went wrong."""
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        while not self._is_over.wait(0.02):
            connection = http.client.HTTPConnection(self._address, timeout=SECONDS)
            try:
                connection.request("POST", f"/v1/models/{NAME}:predict", BODY)
                response = connection.getresponse()
                response.read()
                told = response.getheader("x-model-version") if response.status == 200 else None
                self.answers[told or f"status {response.status}"] += 1
            except OSError as error:
                self.answers[repr(error)] += 1
            finally:
                connection.close()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join(SECONDS)


class Served:
    def __init__(self, cluster: Cluster) -> None:
        self._api = cluster.custom
        self._core = cluster.core
        self._api.create_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, service())

    def status(self) -> dict[str, Any]:
        found = self._api.get_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, NAME)
        status: dict[str, Any] = found.get("status", {})
        return status

    def serve(self, digest: str) -> None:
        spec = {"modelRef": {"uri": {"digest": digest}}}
        self._api.patch_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, NAME, {"spec": spec})

    def leads_to(self, name: str) -> str | None:
        selector: dict[str, str] = self._core.read_namespaced_service(name, NAMESPACE).spec.selector
        return selector.get(f"{GROUP}/revision")

    def wait(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while not holds(status := self.status()):
            if time.monotonic() > deadline:
                pods = self._core.list_namespaced_pod(NAMESPACE, label_selector=f"{GROUP}/service={NAME}").items
                logs = [self._core.read_namespaced_pod_log(pod.metadata.name, NAMESPACE) for pod in pods]
                raise TimedOut("\n".join([json.dumps(status, indent=1), *logs]))
            time.sleep(0.2)
        return status


def test_a_canary_that_is_quick_and_wrong_is_rolled_back_and_no_request_fails(alone: Cluster) -> None:
    served = Served(alone)
    first = served.wait(lambda status: status.get("reason") == "Live")["stable"]
    clients = Clients(served.status()["url"])
    try:
        served.serve(WRONG)
        served.wait(lambda status: any("failure" in one for one in status["revisions"]))
        status = served.wait(lambda status: status["reason"] == "GateFailed" and status["traffic"] == f"{first} 100%")
    finally:
        clients.stop()
    wrong = next(one for one in status["revisions"] if "failure" in one)
    verdicts = {gate["name"]: gate["verdict"] for gate in wrong["gates"]}
    assert (wrong["digest"], wrong["failure"]["reason"], verdicts["Agreement"]) == (WRONG, "GateFailed", "Fail")
    assert "compared answers name another class than the other revision's" in wrong["failure"]["message"]
    assert clients.answers.keys() == {first, wrong["name"]}, "nothing but answers"
    assert (status["stable"], served.leads_to(NAME), served.leads_to(f"{NAME}-proven")) == (first, first, first)
