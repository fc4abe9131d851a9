"""What the operator has seen of Benchmarks: themselves, their pods, and their TrainingJobs and InferenceServices.

As in `store.py`, everything that arrives goes through here, older versions are dropped, and a change that matters wakes
the Benchmark it belongs to.
"""

import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import orjson

from capstan_operator.api.benchmark_status import BenchmarkStatus
from capstan_operator.api.inference_service_status import InferenceServiceStatus
from capstan_operator.build.benchmark_pod import BENCH
from capstan_operator.cluster.family import Child, Family
from capstan_operator.cluster.kinds import BENCHMARKS
from capstan_operator.cluster.objects import ObjectRecord, Objects
from capstan_operator.cluster.pods import MAX_TERMINATION_BYTES, Pod, exit_reason, seconds_of, waiting
from capstan_operator.cluster.serving_store import STUCK, STUCK_SECONDS, ServingStore
from capstan_operator.cluster.statuses import read_known_status
from capstan_operator.cluster.store import Store
from capstan_operator.cluster.work_queue import ObjectKey, Priority
from capstan_operator.metrics import Metrics
from capstan_operator.observe import OperatorSettings
from capstan_operator.observe_benchmark import ObservedBenching, ObservedBenchmark, ObservedBenchPod, ObservedTrialJob
from capstan_operator.observe_serving import ObservedService

PHASES = ("Pending", "Running", "Reporting", "Suspended", "Succeeded", "Failed", "Invalid")
_ENDED = ("Succeeded", "Failed")

OwnerId = tuple[str, str]
"""(namespace, uid) of a Benchmark: an object of another namespace that names its uid is none of its children."""


class BenchStore:
    """`wake(key, priority)` is called after each change that matters. `jobs` and `services` know the children."""

    def __init__(
        self,
        wake: Callable[[ObjectKey, Priority], None],
        *,
        jobs: Store,
        services: ServingStore,
        settings: OperatorSettings,
        metrics: Metrics,
    ) -> None:
        self._wake = wake
        self._jobs = jobs
        self._services = services
        self._settings = settings
        self._metrics = metrics
        self._baselines: dict[ObjectKey, ObjectKey] = {}
        """The Benchmark that each compares itself with."""
        self._by_id: dict[OwnerId, ObjectKey] = {}
        self.benchmarks = Objects(BENCHMARKS.kind, self._changed)
        self.pods = Family(_read_pod, self._wake_normally)
        self._of_jobs = _Children(jobs.jobs, self._wake_owner)
        self._of_services = _Children(services.services, self._wake_owner)
        jobs.host_paths_of = services.host_paths_of = self._host_paths
        for phase in PHASES:
            metrics.benchmarks.labels(phase).set_function(partial(self._count, phase))

    def observe(self, key: ObjectKey) -> ObservedBenching | None:
        """Everything known about one Benchmark, frozen; None when there is no such one."""
        record = self.benchmarks.get(key)
        if record is None:
            return None
        baseline = self.benchmarks.get(self._baselines[key]) if key in self._baselines else None
        return ObservedBenching(
            benchmark=self._observe_benchmark(record),
            baseline=self._observe_benchmark(baseline) if baseline is not None else None,
            pods=tuple(_judged(child) for child in self.pods.of(key) if child.owner_uid == record.uid),
            jobs=tuple(map(self._observe_job, self._of_jobs.of((key.namespace, record.uid)))),
            services=tuple(map(self._observe_service, self._of_services.of((key.namespace, record.uid)))),
            lingering=self._lingering(key),
            settings=self._settings,
        )

    def _observe_benchmark(self, record: ObjectRecord) -> ObservedBenchmark:
        return ObservedBenchmark(
            namespace=record.key.namespace,
            name=record.key.name,
            uid=record.uid,
            generation=record.generation,
            is_deleting=record.is_deleting,
            spec=orjson.loads(record.spec),
            status=read_known_status(record, BenchmarkStatus, self._metrics),
            queue=record.queue,
            priority_class=record.priority_class,
        )

    def _host_paths(self, namespace: str, uid: str | None) -> frozenset[str]:
        """Folders of nodes that the Benchmark of this uid names, and the one whose runs it makes anew, if both were let
        begin: what they make gets the same. Whoever names it falsely as an owner gets nothing that the namespace has
        not got already."""
        key = self._by_id.get((namespace, uid)) if uid is not None else None
        named = filter(None, (key, self._baselines.get(key))) if key is not None else ()
        records = filter(None, map(self.benchmarks.get, named))
        begun = (record.spec for record in records if orjson.loads(record.status or b"{}").get("plan"))
        return frozenset().union(*(_paths(orjson.loads(spec)) for spec in begun if b'"hostPath"' in spec))

    def _observe_job(self, record: ObjectRecord) -> ObservedTrialJob:
        observed = self._jobs.observe(record.key)
        pods = observed.pods if observed is not None else ()
        return ObservedTrialJob(self._jobs.observe_job(record), live_pods=sum(pod.phase not in _ENDED for pod in pods))

    def _observe_service(self, record: ObjectRecord) -> ObservedService:
        return ObservedService(
            namespace=record.key.namespace,
            name=record.key.name,
            uid=record.uid,
            generation=record.generation,
            is_deleting=record.is_deleting,
            spec=orjson.loads(record.spec),
            status=read_known_status(record, InferenceServiceStatus, self._metrics),
        )

    def _lingering(self, key: ObjectKey) -> tuple[str, ...]:
        """Services whose pods are there, of which the Benchmark made some: those that are named as its trials are, but
        for a user's own, which runs on and would be waited for for ever."""
        is_of_a_trial = re.compile(rf"{re.escape(key.name)}-t[0-9]{{2,}}(-[0-9]+)?").fullmatch
        owners = self._services.replicas.owners()
        named = [o for o in owners if o.namespace == key.namespace and is_of_a_trial(o.name)]
        known = ((owner.name, self._services.services.get(owner)) for owner in named)
        return tuple(sorted(name for name, record in known if record is None or record.owner_uid is not None))

    def _changed(self, key: ObjectKey) -> None:
        record = self.benchmarks.get(key)
        baseline = _baseline_name(record) if record is not None else None
        if record is not None:
            self._by_id[key.namespace, record.uid] = key
        else:
            self._by_id = {known: other for known, other in self._by_id.items() if other != key}
        if baseline is None:
            self._baselines.pop(key, None)
        else:
            self._baselines[key] = ObjectKey(key.namespace, baseline, BENCHMARKS.kind)
        self._wake_normally(key)
        for user in [user for user, named in self._baselines.items() if named == key]:
            self._wake_normally(user)

    def _wake_normally(self, key: ObjectKey) -> None:
        self._wake(key, Priority.NORMAL)

    def _wake_owner(self, owner: OwnerId) -> None:
        if owner in self._by_id:
            self._wake_normally(self._by_id[owner])

    def _count(self, phase: str) -> int:
        statuses = (orjson.loads(record.status) for record in self.benchmarks.all())
        return sum(status.get("phase", "Pending") == phase for status in statuses)


class _Children:
    """Objects of another kind of ours, by what made them. `wake(owner)` is called when one changed."""

    def __init__(self, objects: Objects, wake: Callable[[OwnerId], None]) -> None:
        self._objects = objects
        self._wake = wake
        self._owners: dict[ObjectKey, OwnerId] = {}
        self._keys: dict[OwnerId, set[ObjectKey]] = {}
        objects.listeners.append(self._changed)

    def of(self, owner: OwnerId) -> list[ObjectRecord]:
        """Sorted by name."""
        records = (self._objects.get(key) for key in sorted(self._keys.get(owner, ())))
        return [record for record in records if record is not None]

    def _changed(self, key: ObjectKey) -> None:
        before, record = self._owners.pop(key, None), self._objects.get(key)
        after = (key.namespace, record.owner_uid) if record is not None and record.owner_uid is not None else None
        if before is not None and before != after:
            self._keys[before].discard(key)
            if not self._keys[before]:
                del self._keys[before]
        if after is not None:
            self._owners[key] = after
            self._keys.setdefault(after, set()).add(key)
        for owner in {before, after} - {None}:
            assert owner is not None
            self._wake(owner)


def _judged(pod: Child[ObservedBenchPod]) -> ObservedBenchPod:
    """The pod as it is now: one whose container is not created for long says so."""
    is_stuck = pod.seen.phase == "Pending" and not pod.seen.waiting and time.time() - pod.created_at >= STUCK_SECONDS
    return replace(pod.seen, waiting=STUCK) if is_stuck else pod.seen


def _baseline_name(record: ObjectRecord) -> str | None:
    """`spec.baseline.benchmark.name` of a spec that nobody has checked yet."""
    found = orjson.loads(record.spec)
    for field in ("baseline", "benchmark", "name"):
        found = found.get(field) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def _paths(node: Any) -> set[str]:
    """Of all hostPaths in a document, wherever."""
    if isinstance(node, list):
        return set().union(*map(_paths, node))
    if not isinstance(node, dict):
        return set()
    source = node.get("hostPath")
    path = source.get("path") if isinstance(source, dict) else None
    return set().union({path} if isinstance(path, str) else (), *map(_paths, node.values()))


def _read_pod(item: Pod) -> Child[ObservedBenchPod] | None:
    """A pod that a Benchmark owns."""
    owner = item.metadata.controller()
    if owner is None or owner.kind != BENCHMARKS.kind:
        return None
    key = ObjectKey(item.metadata.namespace, owner.name, BENCHMARKS.kind)
    created_at = seconds_of(item.metadata.creation_timestamp)
    version = item.metadata.resource_version
    return Child(key, owner.uid, item.metadata.name, version, created_at, None, observe_bench_pod(item))


def observe_bench_pod(pod: Pod) -> ObservedBenchPod:
    """The facts of a pod that a decision looks at."""
    status = pod.status
    state = next((one.state for one in status.container_statuses or () if one.name == BENCH), None)
    terminated = state.terminated if state is not None else None
    return ObservedBenchPod(
        name=pod.metadata.name,
        uid=pod.metadata.uid,
        phase=sys.intern(status.phase),
        is_deleting=pod.metadata.deletion_timestamp is not None,
        ip=status.address(),
        waiting=waiting(status),
        exit_code=terminated.exit_code if terminated is not None else None,
        exit_reason=exit_reason(status, terminated),
        message=terminated.message[:MAX_TERMINATION_BYTES] if terminated is not None else "",
    )
