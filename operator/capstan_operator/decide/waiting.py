"""Why a worker is not ready: Kubernetes' words in ours."""

from capstan_operator.build.mounted import mounted_objects
from capstan_operator.decide.queueing import held_group, is_gated
from capstan_operator.decide.reasons import Reason
from capstan_operator.decide.situation import Situation, Worker
from capstan_operator.observe import ObservedPod

WAITING_REASONS = {
    "Unschedulable": Reason.UNSCHEDULABLE,
    "SchedulerError": Reason.UNSCHEDULABLE,
    "ErrImagePull": Reason.IMAGE_NOT_PULLED,
    "ImagePullBackOff": Reason.IMAGE_NOT_PULLED,
    "ErrImageNeverPull": Reason.IMAGE_NOT_PULLED,
    "InvalidImageName": Reason.IMAGE_NOT_PULLED,
    "ImageInspectError": Reason.IMAGE_NOT_PULLED,
    "CreateContainerConfigError": Reason.CONTAINER_NOT_CREATED,
    "CreateContainerError": Reason.CONTAINER_NOT_CREATED,
    "RunContainerError": Reason.CONTAINER_NOT_CREATED,
}
"""Why a pod waits."""

START_SECONDS = 60.0
"""A pod that has a node and is older than this without having started is worth a word, and another look at what the
operator owes it: its Secret."""


def waiting_for(situation: Situation) -> tuple[Reason, str, bool]:
    """(reason, sentence, whether something is wrong) of the first worker that holds the others up."""
    for worker in situation.workers:
        reason = _reason_of(worker)
        if reason is Reason.WAITING_FOR_QUOTA:
            group, queue = held_group(worker, situation), situation.status.queue
            if group is None or queue is None or group.first >= situation.worlds[0]:
                continue  # it is let through in a moment, or the job can go on without it
            size = f"{group.size} pod{'s' if group.size > 1 else ''}"
            message = f"queue {queue.name} has not admitted the group of {size}: kubectl describe workload {group.name}"
            return reason, message, False
        if reason is not None and worker.pod is not None:
            is_wrong = reason is not Reason.WAITING_FOR_WORKERS
            return reason, _missing_claim(worker, situation) or f"pod {worker.pod.name}: {worker.pod.waiting}", is_wrong
    starting = [pod for pod in _starting_pods(situation) if situation.now - pod.created_at >= START_SECONDS]
    unprepared = next((pod for pod in starting if pod.is_unprepared), None)
    if unprepared is not None:
        return Reason.CONTAINER_NOT_CREATED, _unprepared_sentence(unprepared, situation), True
    message = f"waiting for {situation.wanted} pod{'s' if situation.wanted > 1 else ''} to start"
    if starting:
        slow = starting[0]
        message += f"; {slow.name} is slow to start on node {slow.node}: kubectl describe pod {slow.name}"
    return Reason.WAITING_FOR_WORKERS, message, False


def is_held_up(worker: Worker) -> bool:
    """Something keeps its pod from running that time alone does not mend; or it has failed, and another one follows in
    its own time."""
    if worker.pod is not None and worker.pod.phase == "Failed":
        return True
    return _reason_of(worker) not in (None, Reason.WAITING_FOR_WORKERS)


def trouble_of(worker: Worker) -> str:
    """`digits-worker-3 is Unschedulable: 0/1 nodes are available`: why the worker is not ready."""
    pod = worker.pod
    if pod is None or pod.is_deleting:
        return f"worker {worker.index} has no pod yet"
    if is_gated(pod):
        return f"{pod.name} waits for quota: kubectl describe workload {pod.group}"
    if pod.waiting:
        return (
            f"{pod.name} is {pod.waiting}" if pod.waiting.startswith("Unschedulable") else f"{pod.name}: {pod.waiting}"
        )
    if pod.phase == "Failed":
        return f"{pod.name} failed ({pod.exit_reason or pod.exit_code})"
    if worker.silent_seconds is not None and worker.answer is not None:
        return f"{pod.name} does not answer"
    return f"{pod.name} is starting"


def slow_start(situation: Situation) -> tuple[float | None, bool]:
    """(seconds until a pod that starts is worth a look for being slow, or None; whether one is slow now)."""
    ages = [situation.now - pod.created_at for pod in _starting_pods(situation)]
    waits = [START_SECONDS if age >= START_SECONDS else START_SECONDS - age for age in ages]
    return min(waits, default=None), any(age >= START_SECONDS for age in ages)


def _missing_claim(worker: Worker, situation: Situation) -> str | None:
    """What to do about a pod that no node takes because its store's claim is not there; None: that is not it."""
    claim = situation.blueprint.spec.checkpoint.store.claim
    waiting = worker.pod.waiting if worker.pod else None
    if claim is None or f'persistentvolumeclaim "{claim.name}" not found' not in (waiting or ""):
        return None
    where = f"namespace {situation.observed.job.namespace}"
    return f"spec.checkpoint.store.claim.name: {claim.name} is no PersistentVolumeClaim of {where}; create it"


def _unprepared_sentence(pod: ObservedPod, situation: Situation) -> str:
    """What may keep a node from preparing a pod: which of it does, only the pod's events say."""
    mounted = mounted_objects(situation.blueprint.pod_template)
    missing = f"one of its volumes ({', '.join(mounted)}), or its network" if mounted else "its network"
    return f"pod {pod.name}: node {pod.node} cannot give it {missing}; see why: kubectl describe pod {pod.name}"


def _reason_of(worker: Worker) -> Reason | None:
    """Why its newest pod waits; None: it does not, or is being deleted."""
    if is_gated(worker.pod):
        return Reason.WAITING_FOR_QUOTA
    waiting = worker.pod.waiting if worker.pod and not worker.pod.is_deleting else None
    return WAITING_REASONS.get(waiting.partition(":")[0], Reason.WAITING_FOR_WORKERS) if waiting else None


def _starting_pods(situation: Situation) -> list[ObservedPod]:
    """Newest pods that have a node, on which they do not run yet, and nothing says why."""
    newest = [worker.pod for worker in situation.workers]
    return [
        pod for pod in newest if pod and pod.phase == "Pending" and pod.node and not pod.waiting and not pod.is_deleting
    ]
