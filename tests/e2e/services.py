"""InferenceServices in a cluster, seen through the official Kubernetes client."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from tests.e2e.cluster import GROUP, NAMESPACE, VERSION, Cluster, Status, TimedOut

PLURAL = "inferenceservices"
READY_SECONDS = 300.0
"""For new pods to answer: Ray and the framework are imported one process after the other, on two loaded cores."""


def guarded_service(name: str, job: str, keys: str, collector: str) -> dict[str, Any]:
    """A service of two replicas with every guard there is, in measures that the tests reach and their load does not.

    `keys` is the Secret of API keys, `collector` where spans go.
    """
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {
            "modelRef": {"trainingJob": {"name": job}},
            "replicas": 2,
            "rollout": {"strategy": {"rolling": {"maxSurge": 2}}},
            "timeoutSeconds": 20,
            "auth": {"apiKeysSecretRef": {"name": keys}},
            "rateLimit": {"requests": 20, "seconds": 10, "burst": 40},
            "queue": {"maxOngoingRequests": 64, "maxQueuedRequests": 256},
            "adaptiveLimit": {"minOngoing": 64},
            "circuitBreaker": {"failures": 5},
            "cache": {"maxMebibytes": 16},
            "validation": {"maxBodyKibibytes": 256, "maxSamples": 64, "range": {"min": 0, "max": 1}},
            "anomaly": {"action": "Flag", "confidenceBelow": 0.6},
            "audit": {},
            "tracing": {"endpoint": collector, "samplingRatio": 0.0},
        },
    }


@dataclass
class Service:
    """One InferenceService and what belongs to it."""

    cluster: Cluster
    name: str

    def __post_init__(self) -> None:
        self._apps = client.AppsV1Api(self.cluster.api)
        self._of_it = {"label_selector": f"capstan.dev/service={self.name}"}

    @property
    def _place(self) -> tuple[str, str, str, str]:
        return GROUP, VERSION, NAMESPACE, PLURAL

    def create(self, manifest: dict[str, Any]) -> None:
        self.cluster.custom.create_namespaced_custom_object(*self._place, manifest)

    def patch(self, spec: dict[str, Any]) -> None:
        """Merges `spec`; None removes a field."""
        self.cluster.custom.patch_namespaced_custom_object(*self._place, self.name, {"spec": spec})

    def delete(self) -> None:
        """Asks for its deletion; one that is gone already is fine."""
        try:
            self.cluster.custom.delete_namespaced_custom_object(*self._place, self.name)
        except ApiException as error:
            if error.status != 404:
                raise

    def status(self) -> Status:
        found = self.cluster.custom.get_namespaced_custom_object(*self._place, self.name)
        status: Status = found.get("status") or {}
        return status

    def condition(self, kind: str) -> tuple[str, str] | None:
        """(status, reason) of one condition; None: nothing is said of it."""
        return condition_of(self.status(), kind)

    def pods(self, labels: dict[str, str] | None = None) -> list[Any]:
        """Of all revisions, or those with `labels`."""
        selector = labels or {"capstan.dev/service": self.name}
        text = ",".join(f"{name}={value}" for name, value in selector.items())
        found: list[Any] = self.cluster.core.list_namespaced_pod(NAMESPACE, label_selector=text).items
        return found

    def children(self) -> list[str]:
        """`Kind name` of all that was made for it, sorted."""
        core, apps = self.cluster.core, self._apps
        lists = {
            "Deployment": apps.list_namespaced_deployment,
            "Pod": core.list_namespaced_pod,
            "ReplicaSet": apps.list_namespaced_replica_set,
            "Secret": core.list_namespaced_secret,
            "Service": core.list_namespaced_service,
        }
        return [
            f"{kind} {found.metadata.name}"
            for kind, read in lists.items()
            for found in sorted(read(NAMESPACE, **self._of_it).items, key=lambda item: item.metadata.name)
        ]

    def leads_to(self, name: str) -> str | None:
        """The revision that the Service `name` selects; None: it does not say one."""
        selector: dict[str, str] = self.cluster.core.read_namespaced_service(name, NAMESPACE).spec.selector
        return selector.get("capstan.dev/revision")

    def revisions(self) -> list[str]:
        """Names of those that have a Deployment."""
        return [child.split()[1] for child in self.children() if child.startswith("Deployment ")]

    def log(self, pod: str) -> bytes:
        # The client would take a log of JSON for an object, and give back how Python prints that.
        answer = self.cluster.core.read_namespaced_pod_log(pod, NAMESPACE, _preload_content=False)
        return bytes(answer.data)

    def wait(self, what: str, holds: Callable[[Status], Any], seconds: float = READY_SECONDS) -> Status:
        """The first status for which `holds`; TimedOut with the whole story after `seconds`."""
        deadline = time.monotonic() + seconds
        while not holds(status := self.status()):
            if time.monotonic() > deadline:
                raise TimedOut(f"{self.name}: not {what} after {seconds:.0f} s\n{self.story()}")
            time.sleep(0.2)
        return status

    def wait_settled(self, *, not_on: str | None = None, seconds: float = READY_SECONDS) -> Status:
        """The status once what the spec asks for has all traffic, all its pods are ready and it alone has pods.
        `not_on` is a revision that is to be left behind."""

        def is_settled(status: Status) -> bool:
            return (
                status.get("stable") not in (None, not_on)
                and (condition_of(status, "UpToDate") or ("",))[0] == "True"
                and status["ready"] == "{0}/{0}".format(self._replicas())
                and self.revisions() == [status["stable"]]
                and len(self.pods()) == self._replicas()
            )

        return self.wait("settled", is_settled, seconds)

    def _replicas(self) -> int:
        found = self.cluster.custom.get_namespaced_custom_object(*self._place, self.name)
        return int(found["spec"]["replicas"])

    def story(self) -> str:
        """Status, children, events and the end of each pod's log: what a person would look at."""
        try:
            parts = [json.dumps(self.status(), indent=1), *self.children()]
        except ApiException as error:
            return f"{self.name}: {error.status} {error.reason}"
        for event in self.cluster.core.list_namespaced_event(NAMESPACE).items:
            if event.involved_object.name.startswith(self.name):
                parts.append(f"{event.involved_object.name}: {event.reason}: {event.message}")
        for pod in self.pods():
            parts.append(f"--- {pod.metadata.name}: {pod.status.phase} {pod.status.pod_ip} {pod.status.reason or ''}")
            try:
                lines = self.log(pod.metadata.name).decode(errors="replace").splitlines()
            except ApiException as error:
                lines = [f"(no log: {error.status} {error.reason})"]
            parts += [line[:300] for line in lines[-25:]]
        return "\n".join(parts)


def condition_of(status: Status, kind: str) -> tuple[str, str] | None:
    """(status, reason) of one condition; None: nothing is said of it."""
    found = [entry for entry in status.get("conditions", []) if entry["type"] == kind]
    return (found[0]["status"], found[0]["reason"]) if found else None


def write_keys(cluster: Cluster, name: str, keys: dict[str, str]) -> None:
    """Makes the Secret `name` hold exactly these API keys, by client."""
    data = {client_name: base64.b64encode(key.encode()).decode() for client_name, key in keys.items()}
    secret = {"metadata": {"name": name}, "data": data}
    try:
        cluster.core.replace_namespaced_secret(name, NAMESPACE, secret)
    except ApiException as error:
        if error.status != 404:
            raise
        cluster.core.create_namespaced_secret(NAMESPACE, secret)
