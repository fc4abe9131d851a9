"""Benchmarks for the end-to-end tests: made, waited for, and removed with all that they left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.cluster import ENDED, GROUP, NAMESPACE, VERSION, Cluster, Status, TimedOut

PLACE = (GROUP, VERSION, NAMESPACE, "benchmarks")
SECONDS = 300.0
"""Until the report is there, on a machine that has other things to do."""


@contextmanager
def claim_of_benchmarks(cluster: Cluster, claim: str) -> Iterator[Cluster]:
    """With a claim for results inside the block; those who keep theirs there are removed with it."""
    cluster.claim(claim)
    yield cluster
    for one in cluster.custom.list_namespaced_custom_object(*PLACE)["items"]:
        if one["spec"]["results"] == _results(claim):
            cluster.custom.delete_namespaced_custom_object(*PLACE, one["metadata"]["name"])
    cluster.core.delete_namespaced_persistent_volume_claim(claim, NAMESPACE)


def _results(claim: str) -> dict[str, Any]:
    return {"store": {"claim": {"name": claim}}}


def create(cluster: Cluster, claim: str, name: str, workload: dict[str, Any], **spec: Any) -> str:
    """Returns its uid."""
    document = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "Benchmark",
        "metadata": {"name": name},
        "spec": {"workload": workload, "results": _results(claim), **spec},
    }
    created = cluster.custom.create_namespaced_custom_object(*PLACE, document)
    uid: str = created["metadata"]["uid"]
    return uid


def run(
    cluster: Cluster, claim: str, name: str, workload: dict[str, Any], *, repetitions: int = 1, **spec: Any
) -> tuple[Status, Path]:
    """Status of a Benchmark that has succeeded, and the folder of its results."""
    uid = create(cluster, claim, name, workload, repetitions=repetitions, **spec)
    status = wait_ended(cluster, name, "Succeeded")
    (result,) = cluster.home.glob(f"**/{NAMESPACE}/{name}/{uid}/result.json")
    return status, result.parent


def wait(cluster: Cluster, name: str, holds: Callable[[Status], Any]) -> Status:
    """The first status for which `holds`; TimedOut with all that is known when it does not come."""
    deadline = time.monotonic() + SECONDS
    while not holds(status := status_of(cluster, name)):
        if time.monotonic() > deadline:
            seen = [f"{pod.metadata.name}: {pod.status.phase}" for pod in pods(cluster, name)]
            raise TimedOut(f"{name}: {json.dumps(status, indent=1)}\n{seen}\n{events(cluster, name)}")
        time.sleep(0.1)
    return status


def wait_ended(cluster: Cluster, name: str, phase: str) -> Status:
    """The status with which it ended, in `phase`."""
    status = wait(cluster, name, lambda status: status.get("phase") in ENDED)
    assert status["phase"] == phase, json.dumps(status, indent=1)
    return status


def delete(cluster: Cluster, name: str) -> None:
    """And wait until its pods are gone, too."""
    cluster.custom.delete_namespaced_custom_object(*PLACE, name)
    cluster.wait_gone(lambda: pods(cluster, name), f"a pod of {name}", seconds=120)


def status_of(cluster: Cluster, name: str) -> Status:
    status: Status = cluster.custom.get_namespaced_custom_object(*PLACE, name).get("status") or {}
    return status


def pods(cluster: Cluster, name: str) -> list[Any]:
    found: list[Any] = cluster.core.list_namespaced_pod(NAMESPACE, label_selector=f"capstan.dev/benchmark={name}").items
    return found


def events(cluster: Cluster, name: str) -> list[tuple[str, str]]:
    """(type, reason), without repetitions."""
    selector = f"involvedObject.kind=Benchmark,involvedObject.name={name}"
    found = cluster.core.list_namespaced_event(NAMESPACE, field_selector=selector).items
    return list(dict.fromkeys((event.type, event.reason) for event in found))
