"""What the operator has seen: jobs, their pods, their supervisors. The only place a snapshot is taken from.

Everything that arrives goes through here, whichever way it came: watches, lists, answers to our own writes. Older
versions are dropped, so our own write is never undone by an event that was already under way. A change that matters
wakes the job; the rest is noise and costs microseconds.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ValidationError

from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.cluster.pods import Pod, observe_pod, owning_job, seconds_of, worker_of
from capstan_operator.cluster.work_queue import JobKey, Priority
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

MAX_TOMBSTONES = 10_000
SILENT_AFTER = 2
"""Unanswered requests in a row that make a supervisor silent: one is lost now and then on the best of networks."""

BUSY_KEPT = 6
"""Looks that must agree before a rank is called slow."""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One TrainingJob. Spec and status stay JSON until a pass needs them: a tenth of the memory of dicts."""

    key: JobKey
    uid: str
    version: str
    """resourceVersion."""
    generation: int
    created_at: float
    is_deleting: bool
    spec: bytes
    status: bytes
    is_finished: bool

    def differs_from(self, other: "JobRecord") -> bool:
        """In anything a decision looks at; labels and annotations are the user's own business."""
        return (self.uid, self.generation, self.is_deleting, self.status) != (
            other.uid,
            other.generation,
            other.is_deleting,
            other.status,
        )


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

    key: JobKey
    job_uid: str
    version: str
    pod: ObservedPod


class Store:
    """`wake(key, priority)` is called after each change that matters."""

    def __init__(
        self,
        wake: Callable[[JobKey, Priority], None],
        *,
        token_of: Callable[[str], str],
        settings: OperatorSettings,
        metrics: Metrics,
        allows_chaos: Callable[[str], bool] = lambda namespace: False,
    ) -> None:
        self._wake = wake
        self._allows_chaos = allows_chaos
        self._token_of = token_of
        self._settings = settings
        self._metrics = metrics
        self._jobs: dict[JobKey, JobRecord] = {}
        self._gone: dict[str, None] = {}
        """Uids of deleted jobs and pods, oldest first: an answer that was under way must not bring one back."""
        self._pods: dict[str, dict[str, PodRecord]] = {}
        """By job uid, then pod name."""
        self._supervisors: dict[str, ObservedSupervisor] = {}
        """By pod uid."""
        self._silences: dict[str, Silence] = {}
        """By pod uid."""
        metrics.jobs.set_function(lambda: len(self._jobs))
        metrics.pods.set_function(lambda: sum(map(len, self._pods.values())))

    # Jobs

    def put_job(self, document: Mapping[str, Any]) -> None:
        """Take in a TrainingJob as the API server sent it; an older version than the known one is dropped."""
        job = _job_record(document)
        known = self._jobs.get(job.key)
        if job.uid in self._gone or (known is not None and not is_newer(job.version, known.version)):
            return
        self._jobs[job.key] = job
        if known is None or job.differs_from(known):
            self._wake(job.key, Priority.NORMAL)

    def remove_job(self, key: JobKey, uid: str) -> None:
        """The job with this uid is gone; a newer one of the same name stays."""
        self._bury(uid)
        known = self._jobs.get(key)
        if known is not None and known.uid == uid:
            del self._jobs[key]
            self._wake(key, Priority.NORMAL)

    def job(self, key: JobKey) -> JobRecord | None:
        return self._jobs.get(key)

    def jobs(self) -> list[JobRecord]:
        """All known jobs."""
        return list(self._jobs.values())

    def wake_namespace(self, namespace: str) -> None:
        """Something about this namespace changed that matters to its jobs."""
        for key in [key for key in self._jobs if key.namespace == namespace]:
            self._wake(key, Priority.NORMAL)

    def is_gone(self, uid: str) -> bool:
        """Whether the object with this uid is known to have been deleted."""
        return uid in self._gone

    def _bury(self, uid: str) -> None:
        self._gone[uid] = None
        if len(self._gone) > MAX_TOMBSTONES:
            del self._gone[next(iter(self._gone))]

    # Pods

    def put(self, pod: Pod) -> None:
        """Take in a pod: from the watch, from a list, or from the answer to our own create or delete."""
        owner, place = owning_job(pod.metadata), worker_of(pod.metadata)
        if owner is None or place is None:
            return  # someone else's pod that carries our label
        if pod.metadata.uid in self._gone:
            return
        pods = self._pods.setdefault(owner.uid, {})
        known = pods.get(pod.metadata.name)
        if known is not None and not is_newer(pod.metadata.resource_version, known.version):
            return
        observed, flaw = observe_pod(pod, *place)
        key = JobKey(pod.metadata.namespace, owner.name)
        pods[observed.name] = PodRecord(key, owner.uid, pod.metadata.resource_version, observed)
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
        self._bury(pod.metadata.uid)
        owner = owning_job(pod.metadata)
        record = self._pods.get(owner.uid, {}).get(pod.metadata.name) if owner is not None else None
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
        for job in self._jobs.values():
            if not job.is_finished:
                yield from self.pods_to_ask_of(job)

    def pods_to_ask_of(self, job: JobRecord) -> Iterator[PodRecord]:
        for record in self._pods.get(job.uid, {}).values():
            if _can_be_asked(record.pod):
                yield record

    def pod_to_ask(self, key: JobKey, name: str) -> PodRecord | None:
        """The pod of this name, if it is one to ask."""
        job = self._jobs.get(key)
        record = self._pods.get(job.uid, {}).get(name) if job is not None else None
        return record if record is not None and _can_be_asked(record.pod) else None

    def _drop_pod(self, record: PodRecord) -> None:
        pods = self._pods[record.job_uid]
        del pods[record.pod.name]
        if not pods:
            del self._pods[record.job_uid]
        self._forget_supervisor(record.pod.uid)
        self._wake(record.key, Priority.REPAIR)

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
        known = self._pods.get(record.job_uid, {}).get(record.pod.name)
        return known is not None and known.pod.uid == record.pod.uid

    def _forget_supervisor(self, pod_uid: str) -> None:
        self._supervisors.pop(pod_uid, None)
        self._silences.pop(pod_uid, None)

    # The snapshot

    def observe(self, key: JobKey) -> Observed | None:
        """Everything known about one job, frozen; None when there is no such job."""
        job = self._jobs.get(key)
        if job is None:
            return None
        records = self._pods.get(job.uid, {}).values()
        pods = tuple(sorted((r.pod for r in records), key=lambda pod: (pod.worker, pod.incarnation)))
        return Observed(
            job=ObservedJob(
                namespace=key.namespace,
                name=key.name,
                uid=job.uid,
                generation=job.generation,
                created_at=job.created_at,
                is_deleting=job.is_deleting,
                spec=orjson.loads(job.spec),
                status=self._read_status(job),
            ),
            pods=pods,
            supervisors={p.uid: self._supervisors[p.uid] for p in pods if p.uid in self._supervisors},
            token=self._token_of(job.uid),
            silent_since={p.uid: self._silences[p.uid].since for p in pods if self.is_silent(p.uid)},
            refusing=frozenset(p.uid for p in pods if self.is_silent(p.uid) and self._silences[p.uid].refuses_token),
            is_chaos_allowed=self._settings.allow_chaos and self._allows_chaos(key.namespace),
            settings=self._settings,
        )

    def _read_status(self, job: JobRecord) -> TrainingJobStatus:
        status, dropped = read_status(orjson.loads(job.status))
        if dropped:
            self._metrics.bad_documents.labels("status").inc()
            logger.warning("status fields that cannot be read: %s", ", ".join(dropped), extra={"job": str(job.key)})
        return status


def read_status(document: dict[str, Any]) -> tuple[TrainingJobStatus, list[str]]:
    """The status, and the fields left out because their values cannot be read; unknown fields are passed over.

    A status that somebody edited, or that a newer operator wrote, must not cost the rest of it: the fence above all.
    """
    dropped: list[str] = []
    while True:
        try:
            return TrainingJobStatus.model_validate(document, by_alias=True, by_name=False, extra="ignore"), dropped
        except ValidationError as error:
            fields = {str(flaw["loc"][0]) for flaw in error.errors(include_url=False) if flaw["loc"]}
            if not fields & document.keys():
                raise
            dropped += sorted(fields)
            document = {name: value for name, value in document.items() if name not in fields}


def is_newer(version: str, known: str) -> bool:
    """Whether resource version `version` comes after `known`. Kubernetes declares them comparable numbers since 1.35,
    and they always were; one that is no number is taken for newer, so that nothing is ever stuck."""
    if version.isdecimal() and known.isdecimal():
        return int(version) > int(known)
    return version != known


def _job_record(document: Mapping[str, Any]) -> JobRecord:
    metadata = document["metadata"]
    status = document.get("status") or {}
    return JobRecord(
        key=JobKey(metadata["namespace"], metadata["name"]),
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        generation=metadata.get("generation", 1),
        created_at=seconds_of(metadata.get("creationTimestamp")),
        is_deleting="deletionTimestamp" in metadata,
        spec=_pack(document.get("spec") or {}),
        status=_pack(status),
        is_finished=bool(status.get("finishedAt")),
    )


def _pack(document: Mapping[str, Any]) -> bytes:
    """Canonical JSON. Copied, because orjson hands out its work buffer, which is up to five times as long."""
    return bytes(memoryview(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)))


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
