"""Looks at a TrainingJob, made in a few words: every test says only what matters to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.build.children import pod_name
from capstan_operator.decide.training_job import decide_training_job
from capstan_operator.observe import Observed, ObservedJob, ObservedPod, ObservedSupervisor, OperatorSettings
from capstan_runtime.contract.state import State

NAMESPACE, JOB, JOB_UID = "default", "digits", "7f3a"

SPEC: dict[str, Any] = {
    "framework": {"flax": {}},
    "model": {"mlp": {"hidden": [64]}},
    "data": {"digits": {}},
    "optimizer": {"adamw": {"learningRate": 0.003}},
    "schedule": {"constant": {}},
    "training": {"steps": 200, "globalBatchSize": 64},
    "workers": {"max": 2},
    "checkpoint": {"store": {"claim": {"name": "checkpoints"}}, "interval": {"steps": 20}},
}


def merged(base: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386)."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(base) if isinstance(base, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def make_job(
    spec: Mapping[str, Any] | None = None, status: TrainingJobStatus | None = None, **changes: Any
) -> ObservedJob:
    """The job `digits` of two workers; `spec` is merged into SPEC."""
    job = ObservedJob(
        namespace=NAMESPACE,
        name=JOB,
        uid=JOB_UID,
        generation=1,
        created_at=0.0,
        is_deleting=False,
        spec=merged(SPEC, spec or {}),
        status=status or TrainingJobStatus(),
    )
    return replace(job, **changes)


def make_pod(worker: int, incarnation: int = 0, **changes: Any) -> ObservedPod:
    """A running pod of `worker`; its uid is made of its name."""
    name = pod_name(JOB, worker, incarnation)
    pod = ObservedPod(
        name=name,
        uid=f"{name}-uid",
        worker=worker,
        incarnation=incarnation,
        phase="Running",
        is_deleting=False,
        created_at=0.0,
        ip=f"10.0.{incarnation}.{worker + 1}",
        node=f"node-{worker}",
    )
    return replace(pod, **changes)


def make_state(pod: ObservedPod, document: Mapping[str, Any] | None = None) -> State:
    """What the supervisor of `pod` says; idle unless `document` says more."""
    return State.parse({"pod": pod.name, "uid": JOB_UID, **(document or {})})


def look(
    job: ObservedJob,
    pods: list[ObservedPod] | None = None,
    states: Mapping[str, State] | None = None,
    silent_since: Mapping[str, float] | None = None,
    heard_at: Mapping[str, float] | None = None,
    **changes: Any,
) -> Observed:
    """A look at `job`: `states` and `heard_at` by pod name; who is not in the latter was heard just now."""
    pods = sorted(pods or [], key=lambda pod: (pod.worker, pod.incarnation))
    by_name = {pod.name: pod.uid for pod in pods}
    times = heard_at or {}
    supervisors = {
        by_name[name]: ObservedSupervisor(state, times.get(name, math.inf)) for name, state in (states or {}).items()
    }
    return Observed(job, tuple(pods), supervisors, "secret-token", dict(silent_since or {}), **changes)


IN_ATTEMPT: dict[str, Any] = {"fence": 1, "world": 2}


def lived_until(
    stage: str, spec: Mapping[str, Any] | None = None, settings: OperatorSettings | None = None
) -> Observed:
    """The look after which nothing is left to do at this stage of an undisturbed life, status included.

    nothing (at 0 s), created (0 s), ready (5 s), starting (10 s), running (20 s, step 40, checkpoint of step 40),
    succeeded (60 s), suspended (60 s).
    """
    settings = settings or OperatorSettings()
    observed = look(make_job(spec), settings=settings)
    if stage == "nothing":
        return observed
    observed = _settled(observed, 0.0)
    world = observed.job.status.world or 0
    pods = [make_pod(worker, phase="Pending", ip=None) for worker in range(world)]
    observed = replace(observed, pods=tuple(pods))
    if stage == "created":
        return _settled(observed, 1.0)
    pods = [make_pod(worker) for worker in range(world)]
    observed = look(observed.job, pods, {pod.name: make_state(pod) for pod in pods}, settings=settings)
    if stage == "ready":
        return observed
    observed = _settled(observed, 10.0)
    if stage == "starting":
        return observed
    running = {"phase": "Training", "step": 40, "steps": 200, "metrics": {"loss": 0.5, "step_seconds": 0.1}}
    observed = _with_words(observed, world, running | {"checkpoint": {"step": 40, "root": root(40), "at": 19.0}})
    observed = _settled(observed, 20.0)
    if stage == "running":
        return observed
    if stage == "suspended":
        job = replace(observed.job, spec=merged(observed.job.spec, {"suspend": True}))
        observed = _settled(_settled(replace(observed, job=job), 50.0), 50.0)
        return _settled(look(observed.job, settings=settings), 60.0)
    if stage == "succeeded":
        done = {"phase": "Succeeded", "step": 200, "steps": 200, "metrics": {"loss": 0.01, "accuracy": 0.98}}
        observed = _with_words(observed, world, done | {"checkpoint": {"step": 200, "root": root(200), "at": 59.0}})
        observed = _settled(observed, 60.0)
        finished = tuple(
            replace(
                pod, phase="Succeeded", exit_code=0, exit_reason="Completed", final=observed.supervisors[pod.uid].state
            )
            for pod in observed.pods
        )
        return replace(observed, pods=finished)
    raise ValueError(f"no stage {stage}")


def root(step: int) -> str:
    """The root of the checkpoint of `step`: any would do, but the digits should tell it."""
    return f"blake3:{step:08x}" + "0" * 56


def _with_words(observed: Observed, world: int, document: Mapping[str, Any]) -> Observed:
    """All supervisors say `document` in attempt 1; only rank 0 commits."""
    states = {}
    for pod in observed.pods:
        own = {key: value for key, value in document.items() if pod.worker == 0 or key != "checkpoint"}
        states[pod.name] = make_state(pod, {"fence": 1, "rank": pod.worker, "world": world, **own})
    return look(observed.job, list(observed.pods), states, settings=observed.settings)


def _settled(observed: Observed, now: float) -> Observed:
    """The same look with the status that was decided on it."""
    status = decide_training_job(observed, now).status
    return replace(observed, job=replace(observed.job, status=status))
