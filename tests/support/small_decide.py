"""A decision simple enough to be seen through: N pods, one attempt after the other, to test what carries it out."""

from __future__ import annotations

from typing import Any

from capstan_operator.api.meta import API_VERSION, LABEL_INCARNATION, LABEL_JOB, LABEL_MANAGED_BY, LABEL_WORKER
from capstan_operator.api.training_job_status import WorkersStatus
from capstan_operator.decide.types import Decision, EventNote, Manifest, MembershipPush, PodDeletion
from capstan_operator.observe import Observed, ObservedPod
from capstan_runtime.contract.run_config import Membership

FINISHED_AT = "2026-01-01T00:00:00Z"


def job_document(name: str, workers: int = 2, namespace: str = "default") -> dict[str, Any]:
    """A TrainingJob with the one field that `decide_small` reads."""
    return {
        "apiVersion": API_VERSION,
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"workers": {"max": workers}},
    }


def child_metadata(observed: Observed, name: str, labels: dict[str, str]) -> dict[str, Any]:
    job = observed.job
    owner = {"apiVersion": API_VERSION, "kind": "TrainingJob", "name": job.name, "uid": job.uid, "controller": True}
    return {
        "name": name,
        "namespace": job.namespace,
        "labels": {LABEL_MANAGED_BY: "capstan", LABEL_JOB: job.name} | labels,
        "ownerReferences": [owner],
    }


def pod_manifest(observed: Observed, worker: int, incarnation: int) -> Manifest:
    labels = {LABEL_WORKER: str(worker), LABEL_INCARNATION: str(incarnation)}
    name = f"{observed.job.name}-{worker}-{incarnation}"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": child_metadata(observed, name, labels),
        "spec": {"restartPolicy": "Never", "containers": [{"name": "trainer", "image": "none"}]},
    }


def secret_manifest(observed: Observed) -> Manifest:
    metadata = child_metadata(observed, f"{observed.job.name}-run", {})
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": {"token": "eA=="}}


def decide_small(observed: Observed, now: float) -> Decision:
    """Create what is missing, replace what failed, push the fence to whoever has an older one, finish with the pods."""
    status, job = observed.job.status, observed.job
    if job.is_deleting or status.finished_at:
        return Decision(status=status)
    workers: int = job.spec["workers"]["max"]
    newest: dict[int, ObservedPod] = {pod.worker: pod for pod in observed.pods}
    failed = [pod for pod in newest.values() if pod.phase == "Failed" and not pod.is_deleting]
    fence = max(1, status.fence) + (1 if failed else 0)
    create = [pod_manifest(observed, w, 0) for w in range(workers) if w not in newest]
    create += [pod_manifest(observed, pod.worker, pod.incarnation + 1) for pod in failed]
    states = {uid: supervisor.state for uid, supervisor in observed.supervisors.items()}
    ready = [pod for pod in newest.values() if pod.phase == "Running" and pod.uid in states]
    pushes = [
        MembershipPush(
            pod.name, pod.uid, pod.ip or "", Membership(fence=fence, rank=pod.worker, world=workers, coordinator="c:1")
        )
        for pod in ready
        if len(ready) == workers and not failed and states[pod.uid].fence < fence
    ]
    is_done = len(newest) == workers and all(pod.phase == "Succeeded" for pod in newest.values())
    wanted = status.model_copy(
        update={
            "observed_generation": job.generation,
            "reason": None,
            "message": None,
            "phase": "Succeeded" if is_done else "Running" if len(ready) == workers else "Pending",
            "fence": fence,
            "step": max((state.step for state in states.values()), default=status.step),
            "workers": WorkersStatus(ready=len(ready), desired=workers, summary=f"{len(ready)}/{workers}"),
            "finished_at": FINISHED_AT if is_done else None,
        }
    )
    return Decision(
        status=wanted,
        apply=(secret_manifest(observed),) if create else (),
        create=tuple(create),
        delete=tuple(PodDeletion(pod.name, pod.uid) for pod in failed),
        pushes=tuple(pushes),
        events=(EventNote("Normal", wanted.phase or "", "the phase changed"),) if wanted.phase != status.phase else (),
        is_repair=bool(failed),
    )
