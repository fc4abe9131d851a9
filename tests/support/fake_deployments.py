"""What the Deployment controller and kubelets do, beside a FakeApi: pods come, get ready when told to, and go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from capstan_operator.cluster.kinds import DEPLOYMENTS, PODS
from tests.support.fake_api import FakeApi

Document = dict[str, Any]


def _revision_of(pod: Document) -> str:
    return str(pod["metadata"]["labels"]["capstan.dev/revision"])


class FakeDeployments:
    """`match` makes pods equal to what Deployments ask for; new ones are ready unless their revision is in `broken`."""

    def __init__(self, api: FakeApi) -> None:
        self._api = api
        self._made = 0
        self._is_stopped = False
        self.broken: dict[str, Document] = {}
        """By revision: `terminated` of the container's last state."""

    def stop(self) -> None:
        """As a controller that is down."""
        self._is_stopped = True

    def go_on(self) -> None:
        self._is_stopped = False

    def match(self) -> None:
        if self._is_stopped:
            return
        wanted = {one["metadata"]["name"]: one for one in self._api.of(DEPLOYMENTS)}
        for pod in list(self._pods()):
            if _revision_of(pod) not in wanted:
                self._api.remove(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])
        for name, deployment in wanted.items():
            own = [pod for pod in self._pods() if _revision_of(pod) == name]
            for _ in range(deployment["spec"]["replicas"] - len(own)):
                self._make(deployment)
            for pod in own[deployment["spec"]["replicas"] :]:
                self._api.remove(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])

    def _pods(self) -> Iterator[Document]:
        yield from (pod for pod in self._api.of(PODS) if pod["metadata"]["ownerReferences"][0]["kind"] == "ReplicaSet")

    def _make(self, deployment: Document) -> None:
        self._made += 1
        name, template = deployment["metadata"]["name"], deployment["spec"]["template"]
        status: Document = {"phase": "Running", "podIP": f"127.9.0.{self._made}", "hostIP": "127.0.0.1"}
        if name in self.broken:
            server = {"name": "server", "restartCount": 1, "lastState": {"terminated": self.broken[name]}, "state": {}}
            status["containerStatuses"] = [server]
        else:
            status["conditions"] = [{"type": "Ready", "status": "True"}]
        self._api.put(
            PODS,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": f"{name}-{self._made}",
                    "namespace": deployment["metadata"]["namespace"],
                    "labels": template["metadata"]["labels"],
                    "creationTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "ownerReferences": [
                        {
                            "apiVersion": "apps/v1",
                            "kind": "ReplicaSet",
                            "name": f"{name}-0",
                            "uid": deployment["metadata"]["uid"],
                            "controller": True,
                        }
                    ],
                },
                "spec": template["spec"],
                "status": status,
            },
        )
