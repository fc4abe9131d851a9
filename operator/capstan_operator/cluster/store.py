"""What the operator has seen: jobs, their pods, their supervisors. The only place a snapshot is taken from.

Everything that arrives goes through here, whichever way it came: watches, lists, answers to our own writes. Older
versions are dropped, so our own write is never undone by an event that was already under way. A change that matters
wakes the job; the rest is noise and costs microseconds.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import orjson

from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.cluster.kinds import TRAINING_JOBS
from capstan_operator.cluster.objects import ObjectRecord, Objects, Tombstones, is_newer
from capstan_operator.cluster.pods import Pod, observe_pod, owning_job, worker_of
from capstan_operator.cluster.statuses import read_known_status
from capstan_operator.cluster.work_queue import ObjectKey, Priority
from capstan_operator.metrics import Metrics
from capstan_operator.observe import (
    Observed,
    ObservedJob,
    ObservedPod,
    ObservedSupervisor,
    OperatorSettings,
)
from capstan_runtime.contract.state import State

logger = logging.getLogger(__name__)

JobId = tuple[str, str]
"""(namespace, uid). A uid alone is not enough: a pod of another namespace may name any owner it likes, and would be
asked with that job's token."""

SILENT_AFTER = 2
"""Unanswered requests in a row that make a supervisor silent: one is lost now and then on the best of networks."""

BUSY_KEPT = 6
"""Looks that must agree before a rank is called slow."""


@dataclass(slots=True)
class Silence:
    """The newest unanswered requests to one supervisor."""

    since: float
    """When the first of them was made, in seconds since 1970."""
    requests: int
    refuses_token: bool
    """It was there at the last one, but did not know its job's token."""


@dataclass(slots=True)
class PodRecord:
    """One worker pod."""

    key: ObjectKey
    job_uid: str
    version: str
    pod: ObservedPod

    @property
    def job_id(self) -> JobId:
        return self.key.namespace, self.job_uid


class Store:
    """`wake(key, priority)` is called after each change that matters."""

    def __init__(
        self,
        wake: Callable[[ObjectKey, Priority], None],
        *,
        token_of: Callable[[str], str],
        settings: OperatorSettings,
        metrics: Metrics,
        allows_chaos: Callable[[str], bool] = lambda namespace: False,
        gang_schedulers: Callable[[], frozenset[str]] = frozenset,
        roots_in_use: Callable[[ObjectKey], tuple[str, ...] | None] = lambda job: None,
    ) -> None:
        self._wake = wake
        self._roots_in_use = roots_in_use
        self._allows_chaos = allows_chaos
        self._gang_schedulers = gang_schedulers
        self._token_of = token_of
        self._settings = settings
        self._metrics = metrics
        self.host_paths_of: Callable[[str, str | None], frozenset[str]] = lambda namespace, owner_uid: frozenset()
        """Folders of nodes with which the Benchmark of this namespace and uid has begun."""
        self.jobs = Objects(TRAINING_JOBS.kind, lambda key: self._wake(key, Priority.NORMAL))
        self._gone = Tombstones()
        """Of pods."""
        self._pods: dict[JobId, dict[str, PodRecord]] = {}
        """By job, then pod name."""
        self._queued: dict[ObjectKey, set[str]] = {}
        """Uids of the jobs of this name, gone or there, that have pods which Kueue admits."""
        self._supervisors: dict[str, ObservedSupervisor] = {}
        """By pod uid."""
        self._silences: dict[str, Silence] = {}
        """By pod uid."""
        metrics.jobs.set_function(lambda: len(self.jobs))
        metrics.pods.set_function(lambda: sum(map(len, self._pods.values())))

    def wake_namespace(self, namespace: str) -> None:
        """Something about this namespace changed that matters to its jobs."""
        for key in [job.key for job in self.jobs.all() if job.key.namespace == namespace]:
            self._wake(key, Priority.NORMAL)

    def wake_gangs(self) -> None:
        """Another scheduler's PodGroups are served from now on, or are not any more."""
        for job in self.jobs.all():
            if not job.is_finished and b'"gang"' in job.spec:
                self._wake(job.key, Priority.NORMAL)

    # Pods

    def put(self, pod: Pod) -> None:
        """Take in a pod: from the watch, from a list, or from the answer to our own create or delete."""
        owner, place = owning_job(pod.metadata), worker_of(pod.metadata)
        if owner is None or place is None:
            return  # someone else's pod that carries our label
        if self._gone.covers(pod.metadata.uid, pod.metadata.resource_version):
            return
        pods = self._pods.setdefault((pod.metadata.namespace, owner.uid), {})
        known = pods.get(pod.metadata.name)
        if known is not None and not is_newer(pod.metadata.resource_version, known.version):
            return
        observed, flaw = observe_pod(pod, *place)
        key = ObjectKey(pod.metadata.namespace, owner.name)
        pods[observed.name] = PodRecord(key, owner.uid, pod.metadata.resource_version, observed)
        if observed.group is not None:
            self._queued.setdefault(key, set()).add(owner.uid)
        if known is not None and known.pod.uid != observed.uid:
            self._forget_supervisor(known.pod.uid)
        if known is None or known.pod != observed:
            if flaw is not None:
                self._metrics.bad_documents.labels("termination_message").inc()
                logger.warning(
                    "unreadable termination message of pod %s: %s", observed.name, flaw, extra={"job": str(key)}
                )
            self._wake(key, Priority.REPAIR if _is_trouble(observed) else Priority.NORMAL)

    def remove(self, pod: Pod) -> None:
        """The watch says that this pod is gone."""
        self._gone.add(pod.metadata.uid, pod.metadata.resource_version)
        owner = owning_job(pod.metadata)
        if owner is None:
            return
        record = self._pods.get((pod.metadata.namespace, owner.uid), {}).get(pod.metadata.name)
        if record is not None and record.pod.uid == pod.metadata.uid:
            self._drop_pod(record)

    def replace(self, listed: Iterable[Pod], version: str) -> None:
        """Make the pods equal to a complete list at resource version `version`. What is newer than the list stays."""
        listed = list(listed)
        present = {pod.metadata.uid for pod in listed}
        for record in [record for pods in self._pods.values() for record in pods.values()]:
            if record.pod.uid not in present and not is_newer(record.version, version):
                self._drop_pod(record)
        for pod in listed:
            self.put(pod)

    def pods_to_ask(self) -> Iterator[PodRecord]:
        """Running pods of unfinished jobs: those whose supervisors may have news."""
        for job in self.jobs.all():
            if job.is_ours and not job.is_finished:
                yield from self.pods_to_ask_of(job)

    def pods_to_ask_of(self, job: ObjectRecord) -> Iterator[PodRecord]:
        for record in self._pods.get(_id_of(job), {}).values():
            if _can_be_asked(record.pod):
                yield record

    def pod_to_ask(self, key: ObjectKey, name: str) -> PodRecord | None:
        """The pod of this name, if it is one to ask."""
        job = self.jobs.get(key)
        record = self._pods.get(_id_of(job), {}).get(name) if job is not None else None
        return record if record is not None and _can_be_asked(record.pod) else None

    def _drop_pod(self, record: PodRecord) -> None:
        pods = self._pods[record.job_id]
        del pods[record.pod.name]
        if not pods:
            del self._pods[record.job_id]
            self._forget_queued(record)
        self._forget_supervisor(record.pod.uid)
        self._wake(record.key, Priority.REPAIR)

    def _forget_queued(self, record: PodRecord) -> None:
        uids = self._queued.get(record.key)
        if uids is not None:
            uids.discard(record.job_uid)
            if not uids:
                del self._queued[record.key]

    def queued_keys(self) -> list[ObjectKey]:
        """Of jobs, gone or there, with pods that Kueue admits."""
        return list(self._queued)

    def orphans(self, key: ObjectKey) -> list[ObservedPod]:
        """Pods that Kueue admits and whose job of this name is gone. Those of another controller's job are not ours."""
        job = self.jobs.get(key)
        queued = self._queued.get(key, set()) - {job.uid if job is not None else ""}
        gone = sorted(uid for uid in queued if not self.jobs.was_of_another(uid))
        return [record.pod for uid in gone for record in self._pods.get((key.namespace, uid), {}).values()]

    # Supervisors

    def put_state(self, record: PodRecord, state: State, now: float) -> bool:
        """Take in a supervisor's answer. Returns whether anything but progress changed."""
        if not self._is_current(record):
            return False  # the pod went away while it answered
        known = self._supervisors.get(record.pod.uid)
        was_silent = self.is_silent(record.pod.uid)
        self._silences.pop(record.pod.uid, None)
        self._supervisors[record.pod.uid] = ObservedSupervisor(state, now, _busy_seconds(known, state))
        return known is None or was_silent or _without_progress(known.state) != _without_progress(state)

    def put_silence(self, record: PodRecord, asked_at: float, *, refuses_token: bool = False) -> bool:
        """Take in that a supervisor did not answer a request made at `asked_at`. Returns whether that is news."""
        if not self._is_current(record):
            return False
        silence = self._silences.setdefault(record.pod.uid, Silence(asked_at, 0, refuses_token))
        is_news = silence.requests == SILENT_AFTER - 1 or silence.refuses_token != refuses_token
        silence.requests += 1
        silence.refuses_token = refuses_token
        return is_news and silence.requests >= SILENT_AFTER

    def is_silent(self, pod_uid: str) -> bool:
        """Whether so many requests in a row were not answered that it means something."""
        silence = self._silences.get(pod_uid)
        return silence is not None and silence.requests >= SILENT_AFTER

    def forget_silence(self) -> None:
        """Nobody was asked for a while: what was silent then says nothing about now."""
        self._silences.clear()

    def _is_current(self, record: PodRecord) -> bool:
        known = self._pods.get(record.job_id, {}).get(record.pod.name)
        return known is not None and known.pod.uid == record.pod.uid

    def _forget_supervisor(self, pod_uid: str) -> None:
        self._supervisors.pop(pod_uid, None)
        self._silences.pop(pod_uid, None)

    # The snapshot

    def observe(self, key: ObjectKey) -> Observed | None:
        """Everything known about one job, frozen; None when there is no such job."""
        job = self.jobs.get(key)
        if job is None:
            return None
        records = self._pods.get(_id_of(job), {}).values()
        pods = tuple(sorted((r.pod for r in records), key=lambda pod: (pod.worker, pod.incarnation)))
        return Observed(
            job=self.observe_job(job),
            pods=pods,
            supervisors={p.uid: self._supervisors[p.uid] for p in pods if p.uid in self._supervisors},
            token=self._token_of(job.uid),
            silent_since={p.uid: self._silences[p.uid].since for p in pods if self.is_silent(p.uid)},
            refusing=frozenset(p.uid for p in pods if self.is_silent(p.uid) and self._silences[p.uid].refuses_token),
            is_chaos_allowed=self._settings.allow_chaos and self._allows_chaos(key.namespace),
            roots_in_use=self._roots_in_use(key),
            gang_schedulers=self._gang_schedulers(),
            settings=self._settings,
        )

    def observe_job(self, job: ObjectRecord) -> ObservedJob:
        """The job alone, without its pods."""
        return ObservedJob(
            namespace=job.key.namespace,
            name=job.key.name,
            uid=job.uid,
            generation=job.generation,
            created_at=job.created_at,
            is_deleting=job.is_deleting,
            spec=orjson.loads(job.spec),
            status=read_known_status(job, TrainingJobStatus, self._metrics),
            queue=job.queue,
            priority_class=job.priority_class,
            profile_request=job.profile_request,
            host_paths=self.host_paths_of(job.key.namespace, job.owner_uid),
        )


def _id_of(job: ObjectRecord) -> JobId:
    return job.key.namespace, job.uid


def _can_be_asked(pod: ObservedPod) -> bool:
    return pod.phase == "Running" and pod.ip is not None


def _is_trouble(pod: ObservedPod) -> bool:
    return pod.is_deleting or pod.phase in ("Failed", "Unknown") or bool(pod.exit_code)


def _busy_seconds(known: ObservedSupervisor | None, state: State) -> tuple[float, ...]:
    """The newest values of the metric in this attempt; one that was reported before is no further look."""
    busy = state.metrics.get("busy_seconds")
    if known is None or known.state.fence != state.fence:
        return () if busy is None else (busy,)
    if busy is None or busy in known.busy_seconds[-1:]:
        return known.busy_seconds
    return (*known.busy_seconds, busy)[-BUSY_KEPT:]


def _without_progress(state: State) -> State:
    return state.model_copy(update={"step": 0, "metrics": {}, "seconds": {}, "staged": None})
