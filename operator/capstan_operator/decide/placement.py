"""Which pods should exist, and which should not."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from capstan_operator.build.children import pod_name
from capstan_operator.build.pod import build_pod, with_image
from capstan_operator.decide.actions import needs_new_pod
from capstan_operator.decide.gang import gang_problem
from capstan_operator.decide.nodes import is_kept_waiting, steer
from capstan_operator.decide.queueing import group_for, is_left_behind, may_have_pod
from capstan_operator.decide.situation import ENDED, Situation, Worker, has_changed_pods
from capstan_operator.decide.types import Manifest, PodDeletion
from capstan_operator.observe import ObservedPod
from capstan_runtime.contract.state import Phase

UNHURRIED_SECONDS = 30.0
"""Least age of a pod that failed outside an attempt and without being counted, before another one follows it; twice as
much with every pod its worker has had, up to an hour. The job goes on without it, and no budget stops it."""
LONGEST_UNHURRIED_SECONDS = 3600.0


def plan_creations(situation: Situation) -> tuple[tuple[Manifest, ...], float | None]:
    """(pods to create, seconds until another look is needed for the rest or None), so that every worker has a pod that
    can take part in the next attempt.

    Without an attempt, the pod whose failure was counted is replaced after all others: while it is the newest of its
    worker, the round of replacements that its failure caused is still under way, and no other broken pod is counted on
    its own.
    """
    if gang_problem(situation) is not None:
        return (), None
    members = {worker.index for worker in situation.members}
    missing = [
        worker
        for worker in situation.workers
        if worker.index < situation.wanted
        and worker.index not in members
        and needs_pod(worker, situation)
        and may_have_pod(worker, situation)
    ]
    pauses = {worker.index: _seconds_unhurried(worker, situation) for worker in missing}
    due = [worker for worker in missing if pauses[worker.index] <= 0]
    others = [worker for worker in due if worker.pod is None or worker.pod.name != situation.failed_pod]
    now = others or due
    job, template = situation.observed.job, steer(_template(situation), situation)
    pods = (
        build_pod(job, template, worker.index, _next_incarnation(worker, situation), group_for(worker, situation))
        for worker in now
    )
    waits = [0.0] if len(now) < len(due) else [pause for pause in pauses.values() if pause > 0]
    return tuple(pods), min(waits, default=None)


def _template(situation: Situation) -> dict[str, Any]:
    """What a new pod is made of. Beside pods of the run that have started it gets the image that most of them have: an
    operator that was upgraded since may know a newer one, and one world is of one version."""
    template = situation.blueprint.pod_template
    if has_changed_pods(situation.status, situation.blueprint):
        return template
    pods = [worker.pod for worker in situation.workers if worker.pod and is_live(worker.pod)]
    images = Counter(pod.image for pod in pods if pod.image and pod.running_since and not pod.is_deleting)
    return with_image(template, images.most_common(1)[0][0]) if images else template


def plan_deletions(situation: Situation) -> tuple[PodDeletion, ...]:
    """Pods that are not wanted: of workers beyond the world, older incarnations, and live ones that are given up, or of
    a group that is none any more.

    The newest failed pod of a worker is kept for its logs.
    """
    unwanted = list(situation.surplus)
    members = {worker.index for worker in situation.members}
    for worker in situation.workers:
        older = list(worker.pods[1:])
        is_free = worker.index not in members
        if worker.pod and is_free and is_live(worker.pod) and _is_given_up(worker, situation):
            unwanted.append(worker.pod)
        kept = next((pod for pod in older if pod.phase == "Failed"), None)
        unwanted += [pod for pod in older if pod is not kept]
    return delete_pods(unwanted)


def delete_pods(pods: Iterable[ObservedPod]) -> tuple[PodDeletion, ...]:
    """Deletions of those of `pods` that are not being deleted already, each with its own grace."""
    return tuple(PodDeletion(pod.name, pod.uid) for pod in pods if not pod.is_deleting)


def is_live(pod: ObservedPod) -> bool:
    """It holds, or waits for, room on a node."""
    return pod.phase not in ENDED


def needs_pod(worker: Worker, situation: Situation) -> bool:
    """The worker can take part in no further attempt with the pod it has."""
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
    return (
        situation.is_lost(worker)
        or is_left_behind(worker.pod, situation.status)
        or needs_new_pod(situation.status, worker.pod.name)
        or is_kept_waiting(worker.pod, situation)
    )


def _seconds_unhurried(worker: Worker, situation: Situation) -> float:
    """How long from now until the worker's failed pod may be followed by another one; 0 or less: now."""
    pod = worker.pod
    if pod is None or pod.is_deleting or pod.phase != "Failed" or situation.failed_pod is not None:
        return 0.0
    if needs_new_pod(situation.status, pod.name):
        return 0.0  # its failure was counted: a budget bounds that
    doublings = min(pod.incarnation, 16)
    pause = min(UNHURRIED_SECONDS * float(1 << doublings), LONGEST_UNHURRIED_SECONDS)
    return pod.created_at + pause - situation.now


def _next_incarnation(worker: Worker, situation: Situation) -> int:
    """One above every incarnation that exists, and above the one whose failure was counted last: its name is the
    record that it was counted."""
    highest = worker.pods[0].incarnation if worker.pods else -1
    return max(highest, _counted_incarnation(worker, situation)) + 1


def _counted_incarnation(worker: Worker, situation: Situation) -> int:
    failure = situation.status.failure
    if failure is None or failure.pod is None:
        return -1
    first = pod_name(situation.observed.job.name, worker.index, 0)
    match = re.fullmatch(re.escape(first) + r"(?:-(\d+))?", failure.pod)
    return int(match[1] or 0) if match else -1
