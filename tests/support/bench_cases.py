"""Cases of tests/decide/bench/cases: `given` how a Benchmark came to where it is, `expected` all that is decided then.

given:
  spec      merged into that of a Benchmark with two repetitions of a roofline; workload `training`, `serving` and
            `collectives` stand for the smallest of their kind, and the job is added where one is run
  baseline  {phase, spec, uid} of another Benchmark called `before`; phase Succeeded: it has reported
  kept      {is_there, text} of the ConfigMap that is the baseline; absent: it cannot be read
  story     what happened, in order: `settle` (look until nothing changes), `look` (once), {wait: seconds},
            {start: pod}, {end: pod, code: n, words: text, reason: word}, {fails: pod} (with a trial's last words),
            {wrong: pod} (the same, and another try is of no use), {vanish: pod or job}, {stuck: pod, why: text},
            {leaves: pod} (it is being deleted), {report: verdict or null},
            {job: name, ends: Succeeded | Failed, reason: word, pods: alive},
            {job: name, waits: reason, message: text}, {job: name, restarts: n}, {serve: service}, {spec: fields}
            clear (pods of services that are gone are gone)
            {runs: n} (so many runs are made and succeed)
expected:
  what the look after the story leads to: create, delete, events, requeue_after, and of status what changed
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from capstan_operator.api.benchmark_status import BenchmarkStatus
from capstan_operator.observe_benchmark import ObservedBenchmark, ObservedKept
from tests.support.bench_world import AT, NAMESPACE, World
from tests.support.benchmarks import job_of, spec_of, trial_end
from tests.support.looks import merged

Document = dict[str, Any]
WORKLOADS: dict[str, Document] = {
    "training": {"training": {}},
    "batches": {"training": {"batchSizes": [32, 64]}},
    "scaling": {"scaling": {"workers": [1, 2], "weak": True}},
    "collectives": {"collectives": {"framework": {"deepspeed": {}}}},
    "serving": {
        "serving": {
            "service": {
                "modelRef": {
                    "uri": {"store": {"claim": {"name": "c"}}, "run": "a/b/c", "digest": "blake3:" + "0" * 64}
                },
                "runtime": "torch",
            },
            "rates": [5],
            "scenario": [{"name": "predict", "path": "/"}],
        }
    },
}


def load(path: Path) -> tuple[Document, Document]:
    """(given, expected) of one case."""
    case = yaml.safe_load(path.read_text())
    return case["given"] or {}, case.get("expected") or {}


def rewrite(path: Path) -> None:
    """Writes what is decided now into the case."""
    given, _ = load(path)
    document = {"given": given, "expected": told_of(lived(given))}
    path.write_text(yaml.safe_dump(document, sort_keys=False, width=120, allow_unicode=True))


def lived(given: Document) -> World:
    """The world after the story."""
    world = World(full_spec(given.get("spec") or {}))
    if "kept" in given:
        world.kept = ObservedKept(**given["kept"])
    if "baseline" in given:
        world.baseline = _other(given["baseline"])
    for chapter in given.get("story", []):
        _happen(world, chapter)
    return world


def full_spec(changes: Document) -> Document:
    changes = dict(changes)
    workload = changes.pop("workload", None)
    workload = WORKLOADS[workload] if isinstance(workload, str) else workload
    spec = merged(spec_of(workload), changes)
    if set(spec["workload"]) & {"training", "scaling"}:
        spec = merged({"job": job_of()}, spec)
    return copy.deepcopy(spec)


def told_of(world: World) -> Document:
    """What is decided on the next look, as `expected` tells it."""
    decision = world.decide()
    document: Document = {
        "create": [f"{one['kind']} {one['metadata']['name']}" for one in decision.create],
        "delete": [f"{one.kind} {one.name}" for one in decision.delete],
        "status": _difference(world.status, decision.status),
        "events": [f"{note.type} {note.reason}: {note.message}" for note in decision.events],
        "requeue_after": None if decision.requeue_after is None else round(decision.requeue_after, 3),
    }
    return {key: value for key, value in document.items() if value not in (None, [], {})}


def _difference(old: BenchmarkStatus, new: BenchmarkStatus) -> Document:
    before, after = _told(old), _told(new)
    return {name: after.get(name) for name in sorted(before | after) if before.get(name) != after.get(name)}


def _told(status: BenchmarkStatus) -> Document:
    """A status in plain words."""
    document = status.document()
    for name in ("figures", "environment", "plan", "observedGeneration"):
        document.pop(name, None)
    conditions = document.pop("conditions", [])
    running = document.pop("running", None)
    words: Document = {one["type"]: f"{one['status']} {one['reason']}" for one in conditions}
    if running:
        document["running"] = f"{running['trial']} attempt {running['attempt']}" + (
            f" as {running['uid']}" if "uid" in running else ""
        )
    document["trials"] = [
        " ".join(str(one[name]) for name in ("trial", "arm", "case", "attempt", "uid") if one.get(name))
        for one in document.get("trials", [])
    ]
    document["repeats"] = [f"{one['trial']} {one['attempt']}: {one['reason']}" for one in document.get("repeats", [])]
    document["progress"] = document.get("progress", {}).get("summary")
    return document | words


def _other(given: Document) -> ObservedBenchmark:
    phase = given.get("phase", "Succeeded")
    status: Document = {"phase": phase}
    if phase == "Succeeded":
        status["conditions"] = [
            {"type": "Succeeded", "status": "True", "reason": "Reported", "message": "", "lastTransitionTime": AT}
        ]
    spec = full_spec(given.get("spec") or {})
    uid = given.get("uid", "before-uid")
    return ObservedBenchmark(NAMESPACE, "before", uid, 1, False, spec, BenchmarkStatus.parse(status))


def _happen(world: World, chapter: Any) -> None:
    match chapter:
        case "settle":
            world.settle()
        case "look":
            world.carry_out(world.decide())
        case "clear":
            world.clear()
        case {"wait": seconds}:
            world.now += seconds
        case {"runs": count}:
            for _ in range(count):
                _make_run(world)
        case {"start": pod}:
            world.start(pod)
        case {"end": pod, **more}:
            world.end(pod, more.get("code", 0), more.get("words"), more.get("reason"))
        case {"fails": pod}:
            world.end(pod, 1, trial_end("RuntimeError: no luck", is_ok=False))
        case {"wrong": pod}:
            world.end(pod, 78, trial_end("a field is wrong", is_ok=False, is_final=True))
        case {"vanish": name}:
            world.pods.pop(name, None)
            world.jobs.pop(name, None)
            world.services.pop(name, None)
        case {"leaves": pod}:
            world.pods[pod] = replace(world.pods[pod], is_deleting=True)
        case {"stuck": pod, "why": why}:
            world.pods[pod] = replace(world.pods[pod], waiting=why)
        case {"report": verdict}:
            world.report(verdict)
        case {"job": name, "ends": how, **more}:
            reason = more.get("reason", "Completed")
            world.end_job(name, how, reason, more.get("message", "done"))
            world.set_job(name, live_pods=more.get("pods", 0))
        case {"job": name, "waits": reason, "message": message}:
            world.set_job(name, phase="Pending", reason=reason, message=message)
        case {"job": name, "restarts": count}:
            world.set_job(name, live_pods=1, phase="Running", restarts={"total": count})
        case {"serve": name}:
            world.serve(name)
        case {"baseline": given}:
            world.baseline = _other(given) if given else None
        case {"spec": changes}:
            world.edit(**changes)
        case _:
            raise ValueError(f"no chapter {chapter}")


def _make_run(world: World) -> None:
    """The run that is due begins, and succeeds."""
    world.settle()
    world.clear()
    world.settle()
    for name in [name for name, one in world.jobs.items() if not one.job.status.finished_at]:
        world.end_job(name)
    for name, service in world.services.items():
        if service.status.url is None:
            world.serve(name)
            world.settle()
    for name in [name for name, pod in world.pods.items() if pod.phase == "Pending"]:
        world.start(name)
        world.settle()
    for name in [name for name, pod in world.pods.items() if pod.phase in ("Pending", "Running")]:
        world.end(name)
    world.settle()
