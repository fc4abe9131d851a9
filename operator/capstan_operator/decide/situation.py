"""One look at a job, arranged by worker: what every policy reads."""

from dataclasses import dataclass, replace

from capstan_operator.api.replicas import Replicas, replicas_of, whole_worlds
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.blueprint import Blueprint
from capstan_operator.decide.ranks import rank_of, read_ranks
from capstan_operator.decide.times import seconds_since_1970
from capstan_operator.observe import Observed, ObservedPod
from capstan_runtime.contract.state import Phase, State

SILENCE_SECONDS = 15.0
"""A supervisor that does not answer for so long, while another one of the job does, is lost with its node."""
SHARED_SILENCE_SECONDS = 60.0
"""The same when none of the job answers: then the network of the operator is as likely to blame, and pods that train
on in peace must not be killed for it."""

ENDED = ("Succeeded", "Failed")
"""Phases of a pod that runs no more."""
LEAVING = frozenset({Phase.SUCCEEDED, Phase.STOPPING})
"""Phases in which a supervisor refuses a place: its pod is about to end."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker with all pods it ever had that still exist."""

    index: int
    """Of the worker; its rank is told by the attempt (`Situation.rank_of`)."""
    pods: tuple[ObservedPod, ...]
    """Newest incarnation first."""
    answer: State | None
    """Newest answer of the newest pod's supervisor; None: it never answered."""
    heard_at: float | None
    """When that answer came (seconds since 1970)."""
    silent_seconds: float | None
    """How long requests to it have been unanswered; None: it answers, or was not asked."""
    refuses_token: bool = False
    """Its supervisor is there, but does not know the token of its job."""

    @property
    def pod(self) -> ObservedPod | None:
        """The newest pod; None: there is none."""
        return self.pods[0] if self.pods else None

    @property
    def word(self) -> State | None:
        """The last that was heard of the newest pod."""
        return (self.pod.final if self.pod else None) or self.answer

    @property
    def is_up(self) -> bool:
        """The pod runs and nobody is taking it away."""
        return self.pod is not None and self.pod.phase == "Running" and not self.pod.is_deleting

    @property
    def is_answering(self) -> bool:
        """The newest request to its supervisor was answered."""
        return self.is_up and self.answer is not None and self.silent_seconds is None

    @property
    def is_ready(self) -> bool:
        """It can be given a place in a new attempt."""
        return (
            self.is_answering
            and self.answer is not None
            and self.answer.phase not in LEAVING
            and self.pod is not None
            and self.pod.ip is not None
        )

    def has_finished(self, fence: int) -> bool:
        """It did all its work in attempt `fence`."""
        if self.pod is None:
            return False
        if self.word is not None and self.word.phase is Phase.SUCCEEDED:
            return self.word.fence == fence
        # No last words: a program of the user's own, or they were lost. Then the exit code must do.
        is_member = self.answer is None or self.answer.fence == fence
        return self.pod.final is None and is_member and self.pod.phase == "Succeeded" and not self.pod.is_deleting


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a policy may know. `status` is what is known so far; every step of a decision may add to it."""

    observed: Observed
    blueprint: Blueprint
    status: TrainingJobStatus
    worlds: tuple[int, ...]
    """Sizes the world may have, smallest first; never empty."""
    workers: tuple[Worker, ...]
    """By index: one for each place in the largest world, and those beyond it that are in the attempt."""
    surplus: tuple[ObservedPod, ...]
    """Pods of workers that are neither."""
    answering: int
    """How many of the workers answer."""
    now: float

    @property
    def has_last_words(self) -> bool:
        """A worker's newest pod is going away or has ended: what it says now is not heard again."""
        return any(w.pod is not None and (w.pod.is_deleting or w.pod.final is not None) for w in self.workers)

    @property
    def wanted(self) -> int:
        """How many workers should have a pod: the largest valid world."""
        return self.worlds[-1]

    @property
    def ranks(self) -> tuple[int, ...]:
        """Workers of the newest attempt by index, in the order of their ranks; empty before the first."""
        return ranks_of(self.status)

    @property
    def members(self) -> tuple[Worker, ...]:
        """Workers of the attempt that is on, in the order of their ranks; empty when none is."""
        if self.status.members is None:
            return ()
        by_index = {worker.index: worker for worker in self.workers}
        return tuple(by_index[index] for index in self.ranks)

    @property
    def world(self) -> int:
        """How many processes are in the attempt that is on, or are wanted in the next."""
        return self.wanted if self.status.members is None else len(self.ranks)

    @property
    def speaker(self) -> Worker | None:
        """The worker of rank 0 in the newest attempt; None: there was none, or its worker is not wanted any more."""
        first = next(iter(self.ranks), None)
        return next((worker for worker in self.workers if worker.index == first), None)

    def rank_of(self, worker: Worker) -> int | None:
        """Its rank in the newest attempt; None: it had none."""
        return rank_of(worker.index, self.ranks)

    @property
    def failed_pod(self) -> str | None:
        """Name of the pod whose failure was counted and has not been followed by a new attempt yet; None: none."""
        failure = self.status.failure
        return failure.pod if failure and failure.fence == self.status.fence else None

    @property
    def is_recovering(self) -> bool:
        """The attempt that runs, or the one to come, follows a failure."""
        failure, fence = self.status.failure, self.status.fence
        return failure is not None and failure.fence == (fence - 1 if self.status.members else fence)

    def is_of_the_same_blow(self, worker: Worker) -> bool:
        """Its pod has ended, was there when the failure that was counted last happened, and has had no place in an
        attempt since: one blow is charged once, however many pods it breaks.

        Pods that came after are charged: both times are the API server's, and what is free is replaced, so that it is
        bounded by the pods there were.
        """
        failure, pod = self.status.failure, worker.pod
        if failure is None or failure.newest_pod_at is None or pod is None or not self.is_recovering:
            return False
        if not (pod.is_deleting or pod.phase in ENDED or self.is_lost(worker)):
            return False
        has_gone_on = worker.word is not None and worker.word.fence > failure.fence
        return pod.created_at <= seconds_since_1970(failure.newest_pod_at) and not has_gone_on

    def silence_limit(self, worker: Worker) -> float:
        """Seconds of silence after which `worker` is lost."""
        if worker.answer is None:
            # It is still starting, or it runs a program that has no supervisor.
            if self.blueprint.has_own_command:
                return float("inf")
            return SILENCE_SECONDS if worker.refuses_token else self.blueprint.spec.recovery.deadlines.form
        is_network_fine = worker.refuses_token or self.answering > int(worker.is_answering)
        return SILENCE_SECONDS if is_network_fine else SHARED_SILENCE_SECONDS

    def is_lost(self, worker: Worker) -> bool:
        """It has been silent for longer than the limit while its pod runs."""
        return (
            worker.is_up and worker.silent_seconds is not None and worker.silent_seconds >= self.silence_limit(worker)
        )

    def after(self, status: TrainingJobStatus) -> "Situation":
        """The same look with `status` known."""
        return replace(self, status=status)


def look(observed: Observed, blueprint: Blueprint, now: float) -> Situation:
    """The situation of a job with a valid spec."""
    status = observed.job.status
    worlds = valid_worlds(status, blueprint)
    in_attempt = ranks_of(status) if status.members is not None else ()
    by_worker: dict[int, list[ObservedPod]] = {index: [] for index in sorted({*range(worlds[-1]), *in_attempt})}
    surplus: list[ObservedPod] = []
    for pod in sorted(observed.pods, key=lambda pod: -pod.incarnation):
        by_worker.get(pod.worker, surplus).append(pod)
    workers = tuple(_look_at_worker(index, pods, observed, now) for index, pods in by_worker.items())
    answering = sum(worker.is_answering for worker in workers)
    return Situation(observed, blueprint, status, worlds, workers, tuple(surplus), answering, now)


def ranks_of(status: TrainingJobStatus) -> tuple[int, ...]:
    """Workers of the newest attempt by index, in the order of their ranks; empty before the first."""
    if status.ranks is None:
        return tuple(range(status.world or 0)) if status.fence else ()
    return read_ranks(status.ranks)


def valid_worlds(status: TrainingJobStatus, blueprint: Blueprint) -> tuple[int, ...]:
    """Sizes the world may have, smallest first; never empty.

    The virtual ranks are those the run was started with. When a later spec has no size between its min and max whose
    replicas divide them, the largest one below max must do.
    """
    spec = blueprint.spec
    if status.virtual_ranks is None and status.world and is_changed(status, blueprint):
        return (status.world,)
    virtual_ranks = status.virtual_ranks or spec.virtual_ranks
    whole = list(whole_worlds(replicas_as_started(status, blueprint), spec.workers.max, virtual_ranks))
    fitting = tuple(world for world in whole if world >= spec.min_workers) or tuple(whole[-1:])
    if not fitting and status.world and is_changed(status, blueprint):
        return (status.world,)  # too small for a replica as it was started: it goes on as it is
    # A run that begins anew may have other replicas; if none fits, the trainer says so.
    return fitting or (spec.workers.max,)


def replicas_as_started(status: TrainingJobStatus, blueprint: Blueprint) -> Replicas:
    """How workers make replicas in the run that the pods have read, which a later spec does not change."""
    if not is_changed(status, blueprint):
        return replicas_of(blueprint.spec)
    return Replicas(status.workers_per_replica or 1, status.replica_multiple or 1)


def is_changed(status: TrainingJobStatus, blueprint: Blueprint) -> bool:
    """The spec describes another run than the one that was started."""
    return status.run_digest is not None and status.run_digest != blueprint.run_digest


def has_changed_pods(status: TrainingJobStatus, blueprint: Blueprint) -> bool:
    """The spec describes other pods than those that were made first."""
    return status.pods_digest is not None and status.pods_digest != blueprint.pods_digest


def word_of(pod: ObservedPod, observed: Observed) -> State | None:
    """The last that was heard of one pod; None: nothing."""
    return pod.final or _answer_of(pod, observed)


def _look_at_worker(index: int, pods: list[ObservedPod], observed: Observed, now: float) -> Worker:
    newest = pods[0] if pods else None
    answer = _answer_of(newest, observed) if newest else None
    silent_since = observed.silent_since.get(newest.uid) if newest else None
    return Worker(
        index=index,
        pods=tuple(pods),
        answer=answer,
        heard_at=observed.supervisors[newest.uid].fetched_at if newest and answer else None,
        silent_seconds=None if silent_since is None else max(0.0, now - silent_since),
        refuses_token=newest is not None and newest.uid in observed.refusing,
    )


def _answer_of(pod: ObservedPod, observed: Observed) -> State | None:
    supervisor = observed.supervisors.get(pod.uid)
    if supervisor is None:
        return None
    state = supervisor.state
    # An address is given to another pod as soon as the first has gone: what a stranger says is not ours.
    return state if state.uid == observed.job.uid and state.pod == pod.name else None
