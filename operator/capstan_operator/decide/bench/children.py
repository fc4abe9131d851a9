"""Which children there should be: those of the run under way, and what is left of the others."""

from collections.abc import Iterator
from dataclasses import dataclass

from capstan_operator.api.benchmark_status import RunningTrialStatus
from capstan_operator.api.meta import API_VERSION, TrainingJobCondition
from capstan_operator.api.queueing import LABEL_PRIORITY_CLASS, LABEL_QUEUE
from capstan_operator.build.benchmark_children import metadata
from capstan_operator.build.benchmark_pod import BenchPod, build_bench_pod
from capstan_operator.decide.bench.cases import job_spec
from capstan_operator.decide.bench.look import Look, makes_service, pod_names
from capstan_operator.decide.bench.outcome import seconds_until_late, url_of
from capstan_operator.decide.bench.plan import Trial
from capstan_operator.decide.bench.tasks import report_task, runtime_of, trial_task
from capstan_operator.decide.bench.types import BenchDeletion
from capstan_operator.decide.conditions import is_true
from capstan_operator.decide.times import seconds_after
from capstan_operator.decide.types import Manifest
from capstan_operator.observe_benchmark import ObservedBenching, ObservedBenchPod, ObservedTrialJob
from capstan_runtime.contract import env

PAUSE_SECONDS = {2: 2.0, 3: 10.0}
"""Before an attempt: what is short for a moment, memory or a store that restarts, must not use up all of them."""
IDLE_LOOK_SECONDS = 0.5
"""How often is looked whether what ran before has ended."""
_ENDED = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done about children."""

    delete: tuple[BenchDeletion, ...] = ()
    create: tuple[Manifest, ...] = ()
    waits: str | None = None
    """What must have ended before anything is made, in a clause; None: nothing."""
    requeue_after: float | None = None


def plan_children(look: Look) -> Plan:
    """One run at a time: nothing of the next one is made while anything of another is alive."""
    ttl = _seconds_until_ttl(look)
    if ttl is not None and ttl <= 0:
        return Plan(delete=tuple(_all(look)))
    mine = _mine(look)
    delete = (*strays(look.seen, mine), *_superfluous(look))
    running, trial = look.status.running, look.current
    if running is None:
        return Plan(delete=delete, requeue_after=ttl)
    late, pause = seconds_until_late(look, running), _pause(look, running)
    if pause > 0:
        return Plan(delete, requeue_after=pause)
    # A report reads what is finished, and nothing else is measured beside it; but of two only one may write.
    waits = _alive(look, mine) if trial else next((f"pod {pod.name}" for pod in _others(look, mine)), None)
    if waits is not None:
        return Plan(delete, waits=f"waits until {waits} has ended", requeue_after=IDLE_LOOK_SECONDS)
    if trial is None:
        return Plan(delete, _missing_pods(look, running, None), requeue_after=late)
    return Plan(delete, tuple(_missing(look, running, trial)), requeue_after=late)


def _pause(look: Look, running: RunningTrialStatus) -> float:
    """Seconds until anything is made for the attempt."""
    return (
        PAUSE_SECONDS.get(running.attempt, 0.0) - seconds_after(running.started_at, look.now)
        if not running.uid
        else 0.0
    )


def _mine(look: Look) -> frozenset[str]:
    """Names of the children of the attempt under way."""
    running, trial = look.status.running, look.current
    if running is None:
        return frozenset()
    name = look.child(running.trial, running.attempt)
    return frozenset({name, *(pod_names(look, trial, running.attempt) if trial else ())})


def strays(seen: ObservedBenching, mine: frozenset[str]) -> Iterator[BenchDeletion]:
    """What lives and is none of `mine`, the children of the attempt under way. What has ended stays, for its log; a
    service never ends."""
    for pod in seen.pods:
        if pod.name not in mine and _is_live(pod) and not pod.is_deleting:
            yield BenchDeletion("Pod", pod.name, pod.uid)
    for one in seen.jobs:
        if one.job.name not in mine and not _has_ended(one) and not one.job.is_deleting:
            yield BenchDeletion("TrainingJob", one.job.name, one.job.uid)
    for service in seen.services:
        if service.name not in mine and not service.is_deleting:
            yield BenchDeletion("InferenceService", service.name, service.uid)


def _superfluous(look: Look) -> Iterator[BenchDeletion]:
    """Children of finished runs but the last: their results are in the store."""
    for done in look.status.trials[:-1]:
        trial = next((trial for trial in look.trials if trial.name == done.trial), None)
        names = pod_names(look, trial, done.attempt) if trial else ()
        for pod in (pod for name in names if (pod := look.pod(name)) is not None):
            if pod.phase in _ENDED and not pod.is_deleting:
                yield BenchDeletion("Pod", pod.name, pod.uid)
        one = look.job(look.child(done.trial, done.attempt))
        if one is not None and _has_ended(one) and not one.job.is_deleting:
            yield BenchDeletion("TrainingJob", one.job.name, one.job.uid)


def _all(look: Look) -> Iterator[BenchDeletion]:
    yield from (BenchDeletion("Pod", pod.name, pod.uid) for pod in look.seen.pods if not pod.is_deleting)
    for one in look.seen.jobs:
        if not one.job.is_deleting:
            yield BenchDeletion("TrainingJob", one.job.name, one.job.uid)
    for service in look.seen.services:
        if not service.is_deleting:
            yield BenchDeletion("InferenceService", service.name, service.uid)


def _alive(look: Look, mine: frozenset[str]) -> str | None:
    """The first child of another attempt that is still at work; None: the machine is idle."""
    found = [
        *(f"pod {pod.name}" for pod in _others(look, mine)),
        *(
            f"TrainingJob {one.job.name}"
            for one in look.seen.jobs
            if one.job.name not in mine and (not _has_ended(one) or one.live_pods)
        ),
        *(f"InferenceService {service.name}" for service in look.seen.services if service.name not in mine),
        *(f"InferenceService {name}" for name in look.seen.lingering if name not in mine),
    ]
    return next(iter(found), None)


def _others(look: Look, mine: frozenset[str]) -> Iterator[ObservedBenchPod]:
    """Pods of other attempts that have not ended."""
    return (pod for pod in look.seen.pods if pod.name not in mine and _is_live(pod))


def _is_live(pod: ObservedBenchPod) -> bool:
    return pod.phase not in _ENDED


def _has_ended(one: ObservedTrialJob) -> bool:
    kinds = (TrainingJobCondition.SUCCEEDED, TrainingJobCondition.FAILED)
    return any(is_true(one.job.status, kind) for kind in kinds)


def _missing(look: Look, running: RunningTrialStatus, trial: Trial) -> Iterator[Manifest]:
    """What the attempt lacks and may have now."""
    arm, name = look.arm_of(trial), look.child(running.trial, running.attempt)
    if arm.runs_jobs:
        if look.job(name) is None:
            spec = job_spec(arm, trial.case, trial.repetition, look.spec.results.store)
            job = _object(look, "TrainingJob", name, trial, spec)
            job["metadata"]["labels"] |= _queue_labels(look)
            yield job
        return
    if makes_service(look, trial):
        service = look.service(name)
        if service is None:
            serving = arm.workload.serving
            assert serving is not None
            assert serving.service is not None
            yield _object(look, "InferenceService", name, trial, serving.service.document())
        if service is None or url_of(service) is None:
            return
    yield from _missing_pods(look, running, trial)


def _queue_labels(look: Look) -> dict[str, str]:
    benchmark = look.seen.benchmark
    labels = {LABEL_QUEUE: benchmark.queue, LABEL_PRIORITY_CLASS: benchmark.priority_class}
    return {name: value for name, value in labels.items() if value is not None and benchmark.queue is not None}


def _object(look: Look, kind: str, name: str, trial: Trial, spec: dict[str, object]) -> Manifest:
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": metadata(look.seen.benchmark, name, trial.name),
        "spec": spec,
    }


def _missing_pods(look: Look, running: RunningTrialStatus, trial: Trial | None) -> tuple[Manifest, ...]:
    """Rank 0 first; the others once it has an address to meet at. `trial` None: the report's pod."""
    names = pod_names(look, trial, running.attempt) if trial else (look.child(running.trial, running.attempt),)
    lead = look.pod(names[0])
    if lead is None:
        return (_pod(look, running, trial, names[0], 0),)
    if lead.ip is None or lead.phase in _ENDED:
        return ()
    return tuple(
        _pod(look, running, trial, name, rank, f"{lead.ip}:{env.BENCH_COORDINATOR_PORT}")
        for rank, name in enumerate(names)
        if look.pod(name) is None
    )


def _pod(
    look: Look, running: RunningTrialStatus, trial: Trial | None, name: str, rank: int, coordinator: str | None = None
) -> Manifest:
    benchmark, spec = look.seen.benchmark, look.spec
    if trial is None:
        baseline = spec.baseline.config_map if spec.baseline else None
        # It computes on a CPU, with what the operator ships: nothing of it is measured.
        pods = spec.pods.model_copy(update={"gpus": 0, "image": None, "service_account_name": None})
        pod = BenchPod(
            name=name,
            trial="report",
            task=report_task(look),
            store=spec.results.store,
            pods=pods,
            runtime=None,
            deadline_seconds=spec.trial_deadline_seconds,
            baseline=baseline,
        )
        return build_bench_pod(benchmark, pod, look.seen.settings)
    arm = look.arm_of(trial)
    service = look.service(look.child(running.trial, running.attempt)) if makes_service(look, trial) else None
    pod = BenchPod(
        name=name,
        trial=trial.name,
        task=trial_task(look, trial, running.attempt, rank, url_of(service) if service else None),
        store=spec.results.store,
        pods=arm.pods,
        runtime=runtime_of(arm),
        deadline_seconds=spec.trial_deadline_seconds,
        coordinator=coordinator,
    )
    return build_bench_pod(benchmark, pod, look.seen.settings)


def _seconds_until_ttl(look: Look) -> float | None:
    """Until pods and children are removed; None: never, or it is not over."""
    ttl = look.spec.ttl_seconds_after_finished
    is_quiet = look.is_over and look.status.running is None and look.status.finished_at is not None
    return ttl - seconds_after(look.status.finished_at, look.now) if ttl is not None and is_quiet else None
