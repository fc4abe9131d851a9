"""Which pods should exist, and which should not."""

import re

from capstan_operator.build.children import pod_name
from capstan_operator.build.pod import build_pod
from capstan_operator.decide.failure import needs_new_pod
from capstan_operator.decide.situation import Situation, Worker
from capstan_operator.decide.types import Manifest, PodDeletion
from capstan_operator.observe import ObservedPod
from capstan_runtime.contract.state import Phase

ENDED = ("Succeeded", "Failed")


def plan_creations(situation: Situation) -> tuple[tuple[Manifest, ...], bool]:
    """(pods to create, whether another look is needed for the rest), so that every worker has a pod that can take part
    in the next attempt.

    The pod whose failure was counted is replaced after all others: while it is the newest of its worker, the round of
    replacements that its failure caused is still under way, and no other broken pod is counted on its own.
    """
    missing = [worker for worker in situation.workers if _needs_pod(worker, situation)]
    others = [worker for worker in missing if worker.pod is None or worker.pod.name != situation.failed_pod]
    now = others or missing
    job, template = situation.observed.job, situation.blueprint.pod_template
    pods = (build_pod(job, template, worker.index, _next_incarnation(worker, situation)) for worker in now)
    return tuple(pods), len(now) < len(missing)


def plan_deletions(situation: Situation) -> tuple[PodDeletion, ...]:
    """Pods that are not wanted: of workers beyond the world, older incarnations, and live ones that are given up.

    The newest failed pod of a worker is kept for its logs.
    """
    unwanted = list(situation.surplus)
    for worker in situation.workers:
        older = list(worker.pods[1:])
        if worker.pod and worker.pod.phase not in ENDED and _is_given_up(worker, situation):
            unwanted.append(worker.pod)
        kept = next((pod for pod in older if pod.phase == "Failed"), None)
        unwanted += [pod for pod in older if pod is not kept]
    return delete_pods(unwanted)


def delete_pods(pods: list[ObservedPod]) -> tuple[PodDeletion, ...]:
    """Deletions of those of `pods` that are not being deleted already, each with its own grace."""
    return tuple(PodDeletion(pod.name, pod.uid) for pod in pods if not pod.is_deleting)


def is_live(pod: ObservedPod) -> bool:
    """It holds, or waits for, room on a node."""
    return pod.phase not in ENDED


def _needs_pod(worker: Worker, situation: Situation) -> bool:
    pod = worker.pod
    if pod is None or pod.is_deleting or pod.phase == "Failed":
        return True
    if situation.status.fence == 0 and worker.has_finished(0):
        # A program of the user's own: its pods do not wait for each other, so what is done stays done.
        return False
    has_left = pod.phase == "Succeeded" or (worker.answer is not None and worker.answer.phase is Phase.SUCCEEDED)
    return has_left or _is_given_up(worker, situation)


def _is_given_up(worker: Worker, situation: Situation) -> bool:
    if worker.pod is None:
        return False
    return situation.is_lost(worker) or needs_new_pod(situation, worker.pod.name)


def _next_incarnation(worker: Worker, situation: Situation) -> int:
    """One above every incarnation that exists, and above the one whose failure was counted last: its name is the
    record that it was counted."""
    highest = worker.pods[0].incarnation if worker.pods else -1
    return max(highest, _counted_incarnation(worker, situation)) + 1


def _counted_incarnation(worker: Worker, situation: Situation) -> int:
    failure = situation.status.failure
    if failure is None or failure.pod is None or failure.rank != worker.index:
        return -1
    first = pod_name(situation.observed.job.name, worker.index, 0)
    match = re.fullmatch(re.escape(first) + r"(?:-(\d+))?", failure.pod)
    return int(match[1] or 0) if match else -1
