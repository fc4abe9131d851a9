"""What the pods of a Benchmark are told."""

from capstan_operator.api.benchmark import BenchmarkSpec, ServingWorkload
from capstan_operator.decide.bench.baseline import Standard
from capstan_operator.decide.bench.look import Look, makes_service, world_of
from capstan_operator.decide.bench.plan import Trial
from capstan_runtime.contract.benchmark import (
    BenchTask,
    GateTask,
    Repeat,
    ReportTask,
    TrialRef,
    TrialTask,
    TrialWork,
)
from capstan_runtime.contract.workloads import Load, Runtime


def trial_task(look: Look, trial: Trial, attempt: int, rank: int, url: str | None) -> BenchTask:
    """Of one rank. `url` is that of the service that was made for it; None: none was."""
    arm = look.arm_of(trial)
    workload = arm.workload
    work = {workload.kind: _load(workload.serving)} if workload.serving else {workload.kind: workload.value}
    if workload.serving and workload.serving.url:
        url = workload.serving.url
    task = TrialTask(
        trial=trial.name,
        attempt=attempt,
        seed=trial.seed,
        work=TrialWork.model_validate(work),
        rank=rank,
        world=world_of(look, trial),
        url=url,
        service=look.child(trial.name, attempt) if makes_service(look, trial) else None,
        operator_url=look.seen.settings.operator_url,
        deadline_seconds=look.spec.trial_deadline_seconds,
    )
    return _task(look, trial=task)


def report_task(look: Look) -> BenchTask:
    """All runs that are finished, and what they are to be judged by."""
    standard, gate, workload = look.standard, look.spec.gate, look.spec.workload
    measured = workload.training or workload.scaling
    task = ReportTask(
        workload=workload.kind,
        spec=dict(look.seen.benchmark.spec),
        warmup_steps=measured.warmup_steps if measured else 0,
        trials=tuple(_refs(look)),
        repeats=tuple(
            Repeat(trial=repeat.trial, attempt=repeat.attempt, reason=repeat.reason)
            for repeat in look.status.repeats
            if any(repeat.trial == trial.name for trial in look.trials)
        ),
        baseline=standard.task if isinstance(standard, Standard) else None,
        gate=GateTask(
            minimum_effect_percent=gate.minimum_effect_percent,
            confidence=gate.confidence,
            metrics=tuple(gate.metrics),
        )
        if gate
        else None,
    )
    return _task(look, report=task)


def runtime_of(arm: BenchmarkSpec) -> Runtime | None:
    """Whose image the trial's pods need; None: that of neither framework."""
    workload = arm.workload
    if workload.collectives:
        return "flax" if workload.collectives.framework.kind == "flax" else "torch"
    measured = workload.inference or workload.roofline or workload.checkpoint
    return measured.runtime if measured else None


def _refs(look: Look) -> list[TrialRef]:
    planned = {trial.name: trial for trial in look.trials}
    found = []
    for done in look.status.trials:
        trial, name = planned[done.trial], look.child(done.trial, done.attempt)
        found.append(
            TrialRef(
                trial=done.trial,
                attempt=done.attempt,
                arm=trial.arm,
                repetition=trial.repetition,
                labels=dict(trial.case.labels),
                job=f"{name}/{done.uid}" if done.uid else None,
                service=name if makes_service(look, trial) else None,
            )
        )
    return found


def _load(serving: ServingWorkload) -> Load:
    """What the pod does; what it does it to is the operator's business."""
    return Load.model_validate({name: getattr(serving, name) for name in Load.model_fields})


def _task(look: Look, *, trial: TrialTask | None = None, report: ReportTask | None = None) -> BenchTask:
    benchmark = look.seen.benchmark
    return BenchTask(
        benchmark=benchmark.name,
        namespace=benchmark.namespace,
        uid=benchmark.uid,
        seed=look.spec.seed,
        trial=trial,
        report=report,
    )
