"""What is known of Benchmarks: their own pods, jobs and services, nobody else's, and whom a change wakes."""

from __future__ import annotations

import time
from typing import Any

import orjson
import pytest

from capstan_operator.cluster import bench_store
from capstan_operator.cluster.bench_store import BenchStore
from capstan_operator.cluster.pods import decode_pod
from capstan_operator.cluster.serving_store import ServingStore
from capstan_operator.cluster.store import Store
from capstan_operator.cluster.work_queue import ObjectKey, Priority
from capstan_operator.metrics import Metrics
from capstan_operator.observe import OperatorSettings
from tests.support.benchmarks import spec_of

Document = dict[str, Any]
KEY = ObjectKey("default", "bench", "Benchmark")


class NoCounts:
    def traffic(self, service_uid: str) -> None:
        return None

    def load(self, service_uid: str) -> None:
        return None

    def latency(self, service_uid: str) -> Document:
        return {}


class Known:
    """A store of each kind, and the keys that were woken."""

    def __init__(self) -> None:
        self.woken: list[ObjectKey] = []
        self.version = 0
        self.metrics = Metrics()
        settings = OperatorSettings()
        self.jobs = Store(self._wake, token_of=str, settings=settings, metrics=self.metrics)
        self.services = ServingStore(
            self._wake,
            find_job=lambda key: None,
            counts=NoCounts(),
            token_of=str,
            settings=settings,
            metrics=self.metrics,
        )
        self.store = BenchStore(
            self._wake, jobs=self.jobs, services=self.services, settings=settings, metrics=self.metrics
        )

    def _wake(self, key: ObjectKey, priority: Priority) -> None:
        self.woken.append(key)

    def metadata(self, name: str, owner: str | None = None, replica_set: str | None = None, **more: Any) -> Document:
        """`owner` is the uid of a Benchmark, `replica_set` a name."""
        self.version += 1
        owners = [{"kind": "Benchmark", "name": "bench", "uid": owner, "controller": True}] if owner else []
        if replica_set:
            owners = [{"kind": "ReplicaSet", "name": replica_set, "uid": "r", "controller": True}]
        return {
            "name": name,
            "namespace": "default",
            "uid": f"{name}-uid",
            "resourceVersion": str(self.version),
            "ownerReferences": owners,
            "creationTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        } | more

    def put(self, name: str = "bench", status: Document | None = None, **spec: Any) -> None:
        self.store.benchmarks.put(
            {"metadata": self.metadata(name, uid=f"{name}-uid"), "spec": spec_of(**spec), "status": status or {}}
        )

    def put_pod(
        self,
        name: str,
        owner: str | None = "bench-uid",
        replica_set: str | None = None,
        labels: Document | None = None,
        **status: Any,
    ) -> None:
        metadata = self.metadata(name, owner, replica_set, labels=labels or {})
        document = {"metadata": metadata, "status": {"phase": "Pending"} | status}
        for sink in (self.store.pods, self.services.replicas):
            sink.put(decode_pod(orjson.dumps(document)))


def test_children_are_those_of_this_benchmark_and_not_of_its_predecessor() -> None:
    known = Known()
    known.put()
    known.put_pod("bench-t00")
    known.put_pod("bench-t01", owner="an older one")
    for store, kind in ((known.jobs.jobs, "job"), (known.services.services, "service")):
        for name, owner in ((f"own-{kind}", "bench-uid"), (f"old-{kind}", "an older one"), (f"users-{kind}", None)):
            store.put({"metadata": known.metadata(name, owner), "spec": {}})
    seen = known.store.observe(KEY)
    assert seen is not None
    assert [pod.name for pod in seen.pods] == ["bench-t00"]
    assert [one.job.name for one in seen.jobs] == ["own-job"]
    assert [service.name for service in seen.services] == ["own-service"]


def test_what_names_a_benchmark_of_another_namespace_as_its_owner_is_none_of_its_children() -> None:
    known = Known()
    known.put()
    known.woken.clear()
    elsewhere = known.metadata("bench-t00", "bench-uid", namespace="elsewhere")
    for store in (known.jobs.jobs, known.services.services):
        store.put({"metadata": elsewhere, "spec": {}})
    seen = known.store.observe(KEY)
    assert seen is not None
    assert (seen.jobs, seen.services, KEY in known.woken) == ((), (), False)


VOLUMES = [{"name": "v", "hostPath": {"path": "/v"}}, {"name": "odd", "hostPath": "odd"}]
FOLDERS: Document = {
    "results": {"store": {"hostPath": {"path": "/results"}}},
    "pods": {"podPatch": {"spec": {"volumes": VOLUMES}}},
}
NONE: frozenset[str] = frozenset()


def let_through(known: Known) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Folders of nodes of a job and of a service that the Benchmark made, and of a user's own job."""
    known.jobs.jobs.put({"metadata": known.metadata("bench-t00", "bench-uid"), "spec": {}})
    known.jobs.jobs.put({"metadata": known.metadata("users-own"), "spec": {}})
    known.services.services.put({"metadata": known.metadata("bench-t00", "bench-uid"), "spec": {}})
    job, users = (known.jobs.observe(ObjectKey("default", name)) for name in ("bench-t00", "users-own"))
    service = known.services.observe(ObjectKey("default", "bench-t00", "InferenceService"))
    assert job is not None
    assert users is not None
    assert service is not None
    return job.job.host_paths, service.service.host_paths, users.job.host_paths


def test_what_a_benchmark_makes_may_have_the_folders_of_nodes_that_it_names_once_it_has_begun() -> None:
    known = Known()
    known.put(**FOLDERS)
    assert let_through(known) == (NONE, NONE, NONE)
    known.put(status={"plan": "sha256:1"}, **FOLDERS)
    assert let_through(known) == ({"/results", "/v"}, {"/results", "/v"}, NONE)


def test_what_a_benchmark_makes_anew_may_have_the_folders_of_nodes_that_the_one_of_before_has_begun_with() -> None:
    known = Known()
    known.put(status={"plan": "sha256:1"}, baseline={"benchmark": {"name": "before", "rerun": True}})
    known.put("before", **FOLDERS)
    assert let_through(known) == (NONE, NONE, NONE)
    known.put("before", {"plan": "sha256:2"}, **FOLDERS)
    assert let_through(known) == ({"/results", "/v"}, {"/results", "/v"}, NONE)


def test_a_change_of_a_child_wakes_who_made_it() -> None:
    known = Known()
    known.put()
    known.jobs.jobs.put({"metadata": known.metadata("bench-t00", "bench-uid"), "spec": {}})
    known.woken.clear()
    known.jobs.jobs.put(
        {"metadata": known.metadata("bench-t00", "bench-uid"), "spec": {}, "status": {"phase": "Failed"}}
    )
    assert KEY in known.woken
    known.woken.clear()
    known.jobs.jobs.remove(ObjectKey("default", "bench-t00"), "bench-t00-uid")
    assert KEY in known.woken
    seen = known.store.observe(KEY)
    assert seen is not None
    assert seen.jobs == ()


def test_a_change_of_the_baseline_wakes_who_compares_with_it() -> None:
    known = Known()
    known.put(baseline={"benchmark": {"name": "before"}})
    known.woken.clear()
    known.put("before", status={"phase": "Succeeded"})
    assert KEY in known.woken
    seen = known.store.observe(KEY)
    assert seen is not None
    assert seen.baseline is not None
    assert (seen.baseline.name, seen.baseline.status.phase) == ("before", "Succeeded")


def test_pods_of_a_service_that_is_gone_are_seen_and_those_of_a_namesake_are_not() -> None:
    known = Known()
    known.put()
    for service in ("bench-t00", "bench-t03-2", "bench-t04", "bench-t05", "bench-test", "bench-t0", "benchmark-t00"):
        labels = {
            "capstan.dev/service": service,
            "capstan.dev/revision": f"{service}-1",
            "app.kubernetes.io/managed-by": "capstan",
        }
        known.put_pod(f"{service}-pod", replica_set=f"{service}-1-abc", labels=labels)
    for service, owner in (("bench-t03-2", "bench-uid"), ("bench-t04", "an older one"), ("bench-t05", None)):
        known.services.services.put({"metadata": known.metadata(service, owner), "spec": {}})
    seen = known.store.observe(KEY)
    assert seen is not None
    assert seen.lingering == ("bench-t00", "bench-t03-2", "bench-t04")


def test_a_pod_whose_container_is_not_created_for_a_minute_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known()
    known.put()
    known.put_pod("bench-t00")
    seen = known.store.observe(KEY)
    assert seen is not None
    assert seen.pods[0].waiting is None
    later = time.time() + 61
    monkeypatch.setattr(bench_store.time, "time", lambda: later)
    seen = known.store.observe(KEY)
    assert seen is not None
    assert (seen.pods[0].waiting or "").startswith("ContainerCreating: ")


def test_benchmarks_are_counted_by_phase() -> None:
    known = Known()
    known.put(status={"phase": "Running"})
    known.put("other", status={"phase": "Succeeded"})
    known.put("new")

    def count(phase: str) -> float | None:
        return known.metrics.registry.get_sample_value("capstan_benchmarks", {"phase": phase})

    assert [count(phase) for phase in ("Pending", "Running", "Succeeded", "Failed")] == [1, 1, 1, 0]
