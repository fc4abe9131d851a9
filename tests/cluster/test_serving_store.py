"""What is known of InferenceServices: newest versions only, of the right owner, and nobody is woken for nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import msgspec
import pytest

from capstan_operator.api.meta import LABEL_REVISION, LABEL_SERVICE
from capstan_operator.cluster import serving_store
from capstan_operator.cluster.gateway_routes import HttpRoute
from capstan_operator.cluster.pods import OwnerReference, Pod, PodSpec
from capstan_operator.cluster.replicas import Deployment, DeploymentStatus, Service
from capstan_operator.cluster.scraper import Scraper, Target
from capstan_operator.cluster.serving_store import ServingStore
from capstan_operator.cluster.work_queue import ObjectKey
from capstan_operator.metrics import Metrics
from capstan_operator.observe import OperatorSettings
from capstan_operator.observe_serving import ObservedDeployment, ObservedReplica, ObservedRoute, ObservedServing
from tests.support.looks import make_job

KEY = ObjectKey("default", "served", "InferenceService")
JOB = ObjectKey("default", "digits")
T0, T1 = "2026-01-01T00:00:00Z", "2026-01-01T00:00:10Z"


@dataclass
class Known:
    """A store, and whom it woke."""

    woken: list[ObjectKey] = field(default_factory=list)

    def __post_init__(self) -> None:
        job = make_job()
        self.store = ServingStore(
            lambda key, priority: self.woken.append(key),
            find_job=lambda key: job if key == JOB else None,
            counts=Scraper(list, lambda key: None, Metrics()),
            token_of=lambda uid: f"token of {uid}",
            settings=OperatorSettings(),
            metrics=Metrics(),
        )

    def look(self) -> ObservedServing:
        observed = self.store.observe(KEY)
        assert observed is not None
        return observed

    def wakes(self) -> list[ObjectKey]:
        """Since the last time this was asked."""
        woken, self.woken = self.woken, []
        return woken


@pytest.fixture
def known() -> Known:
    known = Known()
    known.store.services.put(service())
    known.wakes()
    return known


def service(version: int = 1, uid: str = "s1", created: str = T0, job: Any = "digits") -> dict[str, Any]:
    metadata = {"namespace": "default", "name": "served", "uid": uid, "resourceVersion": str(version)}
    spec = {"modelRef": {"trainingJob": {"name": job}}}
    return {"metadata": metadata | {"creationTimestamp": created, "generation": version}, "spec": spec}


def owned(name: str, version: int, owner_uid: str = "s1", kind: str = "InferenceService") -> dict[str, Any]:
    owner = {"apiVersion": "capstan.dev/v1alpha1", "kind": kind, "name": "served", "uid": owner_uid, "controller": True}
    return {
        "name": name,
        "namespace": "default",
        "uid": f"{name}-of-{owner_uid}",
        "resourceVersion": str(version),
        "creationTimestamp": T0,
        "ownerReferences": [owner],
    }


def deployment(name: str, version: int, replicas: int, **owner: str) -> Deployment:
    return msgspec.convert({"metadata": owned(name, version, **owner), "spec": {"replicas": replicas}}, Deployment)


def route(version: int, revision: str | None, name: str = "served", **owner: str) -> Service:
    selector = {LABEL_SERVICE: "served"} | ({LABEL_REVISION: revision} if revision else {})
    spec = {"selector": selector, "clusterIP": "10.0.0.7"}
    return msgspec.convert({"metadata": owned(name, version, **owner), "spec": spec}, Service)


def gateway_route(version: int) -> HttpRoute:
    rules = [{"backendRefs": [{"name": "served", "weight": 1}]}]
    return msgspec.convert({"metadata": owned("served", version), "spec": {"rules": rules}}, HttpRoute)


def pod(name: str, version: int, *, is_ready: bool = False, created: str = T1, **status: Any) -> Pod:
    metadata = {
        "name": name,
        "namespace": "default",
        "uid": name,
        "resourceVersion": str(version),
        "creationTimestamp": created,
        "labels": {LABEL_SERVICE: "served", LABEL_REVISION: "served-1"},
        "ownerReferences": [{"kind": "ReplicaSet", "name": "served-1-x", "uid": "r", "controller": True}],
    }
    conditions = [{"type": "Ready", "status": "True" if is_ready else "False"}]
    document = {"metadata": metadata, "status": {"phase": "Running", "podIP": "10.1.0.1", "conditions": conditions}}
    document["status"] |= status
    return msgspec.convert(document, Pod)


def test_a_snapshot_holds_all_that_belongs_to_the_service_and_nothing_else(known: Known) -> None:
    store = known.store
    store.deployments.put(deployment("served-2", 3, 1))
    store.deployments.put(deployment("served-1", 2, 2))
    store.deployments.put(deployment("served-0", 2, 2, owner_uid="s0"))
    store.deployments.put(deployment("other", 2, 2, kind="Deployment"))
    store.routes.put(route(4, "served-1"))
    store.routes.put(route(4, "served-1", name="served-1"))
    store.routes.put(route(4, "served-2", name="served-proven"))
    store.routes.put(route(4, "served-0", name="served-proven", owner_uid="s0"))
    store.replicas.put(pod("b", 5, is_ready=True))
    store.replicas.put(pod("a", 5))
    store.replicas.put(pod("left-over", 5, created="2025-12-31T23:59:59Z", is_ready=True))
    look = known.look()
    assert look.deployments == (
        ObservedDeployment("served-1", "served-1-of-s1", 2),
        ObservedDeployment("served-2", "served-2-of-s1", 1),
    )
    assert look.route == ObservedRoute("served-of-s1", "served-1", "10.0.0.7")
    assert look.proven == ObservedRoute("served-proven-of-s1", "served-2", "10.0.0.7")
    assert look.replicas == (
        ObservedReplica("a", "a", "served-1", is_ready=False, is_deleting=False),
        ObservedReplica("b", "b", "served-1", is_ready=True, is_deleting=False),
    )
    assert look.job == make_job()
    assert (look.service.uid, look.service.generation, look.traffic) == ("s1", 1, None)


def test_older_versions_and_what_is_gone_change_nothing_and_wake_nobody(known: Known) -> None:
    store = known.store
    store.deployments.put(deployment("served-1", 5, 2))
    assert known.wakes() == [KEY]
    store.deployments.put(deployment("served-1", 4, 1))
    store.deployments.put(deployment("served-1", 6, 2))
    assert known.wakes() == []
    store.deployments.remove(deployment("served-1", 7, 2))
    assert known.wakes() == [KEY]
    store.deployments.put(deployment("served-1", 6, 2))
    assert (known.wakes(), known.look().deployments) == ([], ())


def test_what_only_lost_its_label_is_known_again_when_it_is_seen_at_a_newer_version(known: Known) -> None:
    """A watch with a selector says DELETED of it."""
    known.store.deployments.put(deployment("served-1", 5, 2))
    known.store.deployments.remove(deployment("served-1", 7, 2))
    known.wakes()
    known.store.deployments.put(deployment("served-1", 8, 2))
    assert (known.wakes(), [one.name for one in known.look().deployments]) == ([KEY], ["served-1"])


def test_a_gateway_route_is_told_of_once_gateway_routes_are_known_to_be_served(known: Known) -> None:
    """One that is seen sooner would look like one that nobody wants."""

    def told() -> bool:
        return known.look().gateway_route is not None

    store = known.store
    store.gateway_routes.replace([gateway_route(5)], "5")
    assert not told()
    store.set_gateway_api(is_served=True)
    assert told()
    store.set_gateway_api(is_served=False)
    store.gateway_routes.put(gateway_route(6))  # the answer to a write that was on its way
    assert not told()


def test_a_copy_of_a_replica_that_no_deployment_made_is_none(known: Known) -> None:
    for owners in ([], [{"kind": "ReplicaSet", "name": "other-x", "uid": "r", "controller": True}]):
        copied = pod("copy", 1, is_ready=True)
        copied.metadata.owner_references = msgspec.convert(owners, list[OwnerReference])
        known.store.replicas.put(copied)
    assert known.look().replicas == ()


def test_why_a_deployment_can_make_no_pods_is_told(known: Known) -> None:
    refused = deployment("served-1", 2, 2)
    why = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: pods"}
    refused.status = msgspec.convert({"conditions": [why]}, DeploymentStatus)
    known.store.deployments.put(refused)
    assert known.look().deployments == (
        ObservedDeployment("served-1", "served-1-of-s1", 2, failure="exceeded quota: pods"),
    )


def test_a_complete_list_drops_what_it_lacks_unless_that_is_newer(known: Known) -> None:
    store = known.store
    for name, version in (("served-1", 5), ("served-2", 9)):
        store.deployments.put(deployment(name, version, 1))
    known.wakes()
    store.deployments.replace([deployment("served-3", 6, 1)], "7")
    assert [one.name for one in known.look().deployments] == ["served-2", "served-3"]
    assert known.wakes() == [KEY, KEY]


def test_how_a_container_ended_is_told_until_the_pod_is_ready_again(known: Known) -> None:
    ended = {"exitCode": 75, "reason": "Error", "message": "loading\nthe store does not answer\n"}
    server = {"name": "server", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    known.store.replicas.put(pod("a", 1, containerStatuses=[server | {"lastState": {"terminated": ended}}]))
    assert known.look().replicas == (
        ObservedReplica(
            "a",
            "a",
            "served-1",
            is_ready=False,
            is_deleting=False,
            restarts=2,
            exit_code=75,
            exit_reason="Error",
            exit_message="the store does not answer",
            waiting="CrashLoopBackOff",
        ),
    )
    running = {"name": "server", "restartCount": 3, "state": {"running": {}}, "lastState": {"terminated": ended}}
    running |= {"imageID": "registry/serve@sha256:4567"}
    known.store.replicas.put(pod("a", 2, is_ready=True, containerStatuses=[running]))
    assert known.look().replicas == (
        ObservedReplica(
            "a",
            "a",
            "served-1",
            is_ready=True,
            is_deleting=False,
            restarts=3,
            image_id="registry/serve@sha256:4567",
        ),
    )


def test_a_pod_whose_container_is_not_created_for_a_minute_says_so(
    known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_at = datetime.fromisoformat(T1).timestamp()
    pending = pod("a", 1, phase="Pending", containerStatuses=[{"name": "server", "state": {"waiting": {}}}])
    pending.spec = PodSpec(node_name="n")
    known.store.replicas.put(pending)
    monkeypatch.setattr(serving_store.time, "time", lambda: made_at + 59)
    assert [(one.is_prepared, one.is_stuck, one.waiting) for one in known.look().replicas] == [(False, False, None)]
    monkeypatch.setattr(serving_store.time, "time", lambda: made_at + 61)
    (stuck,) = known.look().replicas
    assert (stuck.is_stuck, str(stuck.waiting).partition(":")[0]) == (True, "ContainerCreating")
    known.store.replicas.put(pod("a", 2, containerStatuses=[{"name": "server", "state": {"running": {}}}]))
    assert [(one.is_prepared, one.is_stuck) for one in known.look().replicas] == [(True, False)]


def test_a_pod_that_ended_for_good_is_none_any_more(known: Known) -> None:
    known.store.replicas.put(pod("a", 1, is_ready=True))
    known.wakes()
    known.store.replicas.put(pod("a", 2, phase="Failed", reason="Evicted"))
    assert (known.wakes(), known.look().replicas) == ([KEY], ())


def test_every_pod_with_an_address_is_asked_as_the_kubelet_asks_it(known: Known) -> None:
    probe = {"httpGet": {"path": "/v2/health/ready", "scheme": "HTTPS"}}
    over_tls = pod("b", 1, is_ready=True)
    over_tls.spec = msgspec.convert({"containers": [{"name": "server", "readinessProbe": probe}]}, PodSpec)
    for one in (pod("a", 1), over_tls, pod("c", 1, podIP=None)):
        known.store.replicas.put(one)
    plain = Target(KEY, "s1", "served-1", "a", "10.1.0.1", is_tls=False, since=None, is_ready=False)
    assert list(known.store.targets()) == [plain, replace(plain, pod_uid="b", is_tls=True, is_ready=True)]
    step = {"rollout": {"phase": "Canary", "since": T1, "candidate": "served-2", "startedAt": T0}}
    known.store.services.put(service(2) | {"status": step})
    assert [target.since for target in known.store.targets()] == [T1, T1]
    known.store.services.put(service(3) | {"status": {"rollout": step["rollout"] | {"phase": "Holding"}}})
    assert [target.since for target in known.store.targets()] == [None, None]


@pytest.mark.parametrize(
    ("autoscaling", "seconds"),
    [
        (None, None),
        ({"maxReplicas": 4}, 300.0),
        ({"maxReplicas": 4, "upscaleDelaySeconds": 20, "downscaleDelaySeconds": 0}, 20.0),
        ({"maxReplicas": "many"}, None),
    ],
)
def test_the_load_is_kept_for_the_longer_delay_of_autoscaling(
    known: Known, autoscaling: Any, seconds: float | None
) -> None:
    known.store.replicas.put(pod("a", 1))
    document = service(2)
    document["spec"]["autoscaling"] = autoscaling
    document["metadata"]["generation"] = 2
    known.store.services.put(document)
    assert [target.load_seconds for target in known.store.targets()] == [seconds]
    known.store.services.put(service(3) | {"metadata": service(3)["metadata"] | {"generation": 3}})
    assert [target.load_seconds for target in known.store.targets()] == [None]


def test_a_job_is_woken_when_other_checkpoints_of_it_are_served(known: Known) -> None:
    serves = {"revisions": [{"name": "served-1", "digest": "blake3:aa", "job": "digits"}]}
    known.store.services.put(service(2) | {"status": serves})
    assert (known.wakes(), known.store.roots_in_use.of(JOB)) == ([JOB, KEY], ("blake3:aa",))
    known.store.services.put(service(3) | {"status": serves | {"message": "the same"}})
    assert known.wakes() == [KEY]
    known.store.services.remove(KEY, "s1")
    assert (known.wakes(), known.store.roots_in_use.of(JOB)) == ([JOB, KEY], ())


@pytest.mark.parametrize("job", [None, 7, {"x": 1}, "other"])
def test_a_job_wakes_the_services_that_serve_it_and_only_those(known: Known, job: Any) -> None:
    known.store.wake_users(JOB)
    assert known.wakes() == [KEY]
    known.store.services.put(service(2, job=job))
    known.wakes()
    known.store.wake_users(JOB)
    assert (known.wakes(), known.look().job) == ([], None)
    known.store.services.put(service(3))
    known.store.services.remove(KEY, "s1")
    known.wakes()
    known.store.wake_users(JOB)
    assert (known.wakes(), known.store.observe(KEY)) == ([], None)
