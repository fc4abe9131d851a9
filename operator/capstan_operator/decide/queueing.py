"""Kueue admits the pods, group by group: which worker is in which group, and which groups there are now.

A group of Kueue's has a size that is fixed, and is admitted as a whole. So the fewest workers to go on with are one
group, and what each larger world needs more is another. One is asked for when those before it were let through: who
holds quota that cannot be used yet would keep others, who hold some too, from theirs.
"""

from collections.abc import Iterable

from capstan_operator.api.queueing import PodGroupStatus, QueueStatus
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.build.pod_group import PodGroup, group_name, role_of
from capstan_operator.decide.situation import ENDED, Situation, Worker
from capstan_operator.decide.types import GroupEnd
from capstan_operator.observe import Observed, ObservedPod

GATED = "SchedulingGated"
GATE_SECONDS = 30.0
"""Kueue lets a replacement through as soon as it has seen it, if its group still has the quota. One that waits for so
long has none."""
ANEW = "set spec.suspend to true, and to false again when no pod is left"


def join_queue(situation: Situation) -> TrainingJobStatus:
    """`situation.status` with the groups there are from now on. A job that is suspended or over has none."""
    status, queue = situation.status, situation.status.queue
    if situation.blueprint.spec.suspend or status.finished_at is not None:
        return _with_groups(status, [])
    if queue is None or not queue.groups:
        return _entered(situation)
    kept = _kept(situation)
    has_begun = status.members is not None or any(_is_open(group, situation) for group in kept)
    if not has_begun and _differs(situation):
        # Nothing is lost but the place in the queue: it is entered as it is asked for now.
        return _entered(situation.after(_with_groups(status, [])))
    closed = _first_closed(situation)
    if closed is None:
        return _grown(situation, kept)
    if seconds_until_given_back(situation) == 0.0:
        kept = kept[: closed + 1]  # what was admitted beyond it is of no use without it
    return _with_groups(status, kept)


def seconds_until_given_back(situation: Situation) -> float | None:
    """When the groups beyond one that lacks its quota are given back if nothing changes; 0.0: now; None: never.

    All pods of a group may break at once, and each replacement is behind the gate for a moment. So that its quota was
    taken is what Kueue says of the pods that it stops, or that it keeps their replacements waiting.
    """
    closed, kept = _first_closed(situation), _kept(situation)
    if situation.status.members is not None or closed is None or closed + 1 == len(kept):
        return None
    pods = [worker.pod for worker in _workers(kept[closed], situation) if worker.pod is not None]
    if any(pod.stopped_by_queue for pod in pods):
        return 0.0
    ages = [situation.now - pod.created_at for pod in pods if is_gated(pod)]
    return max(0.0, GATE_SECONDS - max(ages)) if ages else None


def group_for(worker: Worker, situation: Situation) -> PodGroup | None:
    """The group that a new pod of `worker` is in; None: it is in none."""
    queue = situation.status.queue
    group = _group_of(worker, situation.status)
    if queue is None or group is None:
        return None
    role = role_of(situation.blueprint.pod_template)
    return PodGroup(group.name, group.size, queue.name, queue.priority_class, role)


def may_have_pod(worker: Worker, situation: Situation) -> bool:
    """Kueue would let another pod of `worker` in. It deletes one that comes before the last one has ended, because the
    group would have too many."""
    queue = situation.status.queue
    if queue is None or not queue.groups:
        return True
    is_vacant = all(pod.phase in ENDED or (pod.is_deleting and pod.node is None) for pod in worker.pods)
    return is_vacant and _group_of(worker, situation.status) is not None


def is_left_behind(pod: ObservedPod, status: TrainingJobStatus) -> bool:
    """Its group is none of those there are now."""
    return pod.group is not None and pod.group not in _names(status)


def end_groups(observed: Observed, status: TrainingJobStatus) -> tuple[GroupEnd, ...]:
    """One pod of each group that neither `status` nor the one on record has any more, unless one says so already. Kueue
    keeps the quota of a group, and its pods from going, until it hears that none of them is to be followed."""
    current = _names(observed.job.status) | _names(status)
    return end_all_groups(pod for pod in observed.pods if pod.group not in current)


def end_all_groups(pods: Iterable[ObservedPod]) -> tuple[GroupEnd, ...]:
    """The same for the groups of `pods`, whatever status says."""
    groups: dict[str, list[ObservedPod]] = {}
    for pod in pods:
        if pod.group is not None:
            groups.setdefault(pod.group, []).append(pod)
    return tuple(
        GroupEnd(there[0].name, there[0].uid)
        for there in groups.values()
        if not any(pod.is_last_of_group for pod in there)
    )


def must_end_groups(observed: Observed, status: TrainingJobStatus) -> bool:
    """There will be groups to end as soon as `status` is on record."""
    dropped = _names(observed.job.status) - _names(status)
    return any(pod.group in dropped for pod in observed.pods)


def is_gated(pod: ObservedPod | None) -> bool:
    """Kueue has not let it through yet."""
    return pod is not None and pod.group is not None and _is_alive(pod) and (pod.waiting or "").startswith(GATED)


def is_held(group: PodGroupStatus, situation: Situation) -> bool:
    """Kueue has not admitted it, or took its quota back: all of its pods that there are wait."""
    return not _is_open(group, situation) and any(is_gated(worker.pod) for worker in _workers(group, situation))


def held_group(worker: Worker, situation: Situation) -> PodGroupStatus | None:
    """The group of `worker` if that waits for quota."""
    group = _group_of(worker, situation.status)
    return group if group is not None and is_held(group, situation) else None


def late_queue(situation: Situation) -> str | None:
    """What of labels and sizes the groups of the pods that there are do not follow, and what to do; None: nothing."""
    job, queue = situation.observed.job, situation.status.queue
    if queue is None or not queue.groups:
        is_over = situation.status.finished_at is not None
        if job.queue is None or is_over or situation.blueprint.spec.suspend:
            return None
        return f"queue {job.queue} admits pods that are made anew; to have all of them wait in it, {ANEW}"
    if (queue.name, queue.priority_class) != (job.queue, job.priority_class):
        asked = f"queue {job.queue}" if job.queue else "no queue"
        priority = f" with priority class {job.priority_class}" if job.priority_class else ""
        return f"the pods stay in queue {queue.name}, which admitted them; to have {asked}{priority}, {ANEW}"
    if queue.groups[-1].end > situation.wanted:
        more = queue.groups[-1].end - situation.wanted
        return f"queue {queue.name} keeps quota for {more} more pods, in a group of fixed size; to give it back, {ANEW}"
    return None


def stopped_by_queue(situation: Situation) -> str | None:
    """Why Kueue takes members of the attempt away, in its words; None: it does not."""
    pods = (worker.pod for worker in situation.members)
    return next((pod.stopped_by_queue for pod in pods if pod is not None and pod.stopped_by_queue), None)


def _entered(situation: Situation) -> TrainingJobStatus:
    """The first group is formed, if a queue is asked for and no pod runs outside of it."""
    status, job = situation.status, situation.observed.job
    if job.queue is None or any(pod.group is None and _is_alive(pod) for pod in situation.observed.pods):
        return status
    formed = status.queue.groups_formed if status.queue else 0
    queue = QueueStatus(name=job.queue, priority_class=job.priority_class, groups_formed=formed)
    return _with_another(situation, status.model_copy(update={"queue": queue}), situation.worlds[0])


def _grown(situation: Situation, kept: list[PodGroupStatus]) -> TrainingJobStatus:
    """All that was asked for was let through: what the next larger world needs more is asked for."""
    status = _with_groups(situation.status, kept)
    larger = next((world for world in situation.worlds if world > kept[-1].end), None)
    return status if larger is None else _with_another(situation, status, larger)


def _with_another(situation: Situation, status: TrainingJobStatus, end: int) -> TrainingJobStatus:
    queue = status.queue
    assert queue is not None
    first, number = queue.groups[-1].end if queue.groups else 0, queue.groups_formed + 1
    name = group_name(situation.observed.job, number, first, end - first)
    groups = [*queue.groups, PodGroupStatus(name=name, first=first, size=end - first)]
    return status.model_copy(update={"queue": queue.model_copy(update={"groups": groups, "groups_formed": number})})


def _with_groups(status: TrainingJobStatus, groups: list[PodGroupStatus]) -> TrainingJobStatus:
    if status.queue is None or status.queue.groups == groups:
        return status
    return status.model_copy(update={"queue": status.queue.model_copy(update={"groups": groups})})


def _kept(situation: Situation) -> list[PodGroupStatus]:
    """Groups of which any worker is wanted; the first always is."""
    queue = situation.status.queue
    return [group for group in queue.groups if group.first < situation.wanted] if queue else []


def _first_closed(situation: Situation) -> int | None:
    """Index among the kept groups of the first of which no pod is let through; None: all have one."""
    groups = enumerate(_kept(situation))
    return next((index for index, group in groups if not _is_open(group, situation)), None)


def _differs(situation: Situation) -> bool:
    """Another queue is asked for, or other sizes, than the groups were formed for."""
    job, queue, kept = situation.observed.job, situation.status.queue, _kept(situation)
    if queue is None or (queue.name, queue.priority_class) != (job.queue, job.priority_class):
        return True
    return tuple(group.end for group in kept) != situation.worlds[: len(kept)]


def _group_of(worker: Worker, status: TrainingJobStatus) -> PodGroupStatus | None:
    groups = status.queue.groups if status.queue else ()
    return next((group for group in groups if group.first <= worker.index < group.end), None)


def _workers(group: PodGroupStatus, situation: Situation) -> list[Worker]:
    return [worker for worker in situation.workers if group.first <= worker.index < group.end]


def _is_open(group: PodGroupStatus, situation: Situation) -> bool:
    """Kueue has let a pod of it through: it has a node, or waits for one. A pod of which nobody has said anything yet
    may be on its way to the gate."""
    pods = (worker.pod for worker in _workers(group, situation))
    return any(
        pod is not None and _is_alive(pod) and not is_gated(pod) and (pod.node is not None or pod.waiting is not None)
        for pod in pods
    )


def _is_alive(pod: ObservedPod) -> bool:
    return pod.phase not in ENDED and not pod.is_deleting


def _names(status: TrainingJobStatus) -> frozenset[str]:
    return frozenset(group.name for group in status.queue.groups) if status.queue else frozenset()
