"""A Benchmark's world in memory: the object itself, its pods, jobs and services, and what becomes of them.

`look` is what an operator that has seen everything sees; `carry_out` does what was decided, as an API server would.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from capstan_operator.api.benchmark_status import BenchmarkStatus
from capstan_operator.api.inference_service_status import InferenceServiceStatus
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.bench.types import BenchDecision, BenchDeletion
from capstan_operator.decide.benchmark import decide_benchmark
from capstan_operator.decide.types import EventNote, Manifest
from capstan_operator.observe import ObservedJob, OperatorSettings
from capstan_operator.observe_benchmark import (
    ObservedBenching,
    ObservedBenchmark,
    ObservedBenchPod,
    ObservedKept,
    ObservedTrialJob,
)
from capstan_operator.observe_serving import ObservedService
from tests.support.benchmarks import summary, trial_end

NAME, NAMESPACE, UID = "bench", "default", "bench-uid"
AT = "2026-01-01T00:00:00Z"
MOST_LOOKS = 400
Document = dict[str, Any]


@dataclass
class World:
    """Everything is done as soon as it is decided; nothing ends by itself."""

    spec: Document
    now: float = 1_000_000.0
    status: BenchmarkStatus = field(default_factory=BenchmarkStatus)
    generation: int = 1
    baseline: ObservedBenchmark | None = None
    kept: ObservedKept | None = None
    settings: OperatorSettings = field(default_factory=OperatorSettings)
    pods: dict[str, ObservedBenchPod] = field(default_factory=dict)
    jobs: dict[str, ObservedTrialJob] = field(default_factory=dict)
    services: dict[str, ObservedService] = field(default_factory=dict)
    lingering: set[str] = field(default_factory=set)
    tasks: dict[str, Document] = field(default_factory=dict)
    """What each pod was told, by its name."""
    events: list[EventNote] = field(default_factory=list)
    made: int = 0
    queue: str | None = None
    """The Kueue queue that the Benchmark's label names."""

    def look(self) -> ObservedBenching:
        facts = (NAMESPACE, NAME, UID, self.generation, False, self.spec, self.status)
        benchmark = ObservedBenchmark(*facts, queue=self.queue)
        return ObservedBenching(
            benchmark=benchmark,
            baseline=self.baseline,
            kept=self.kept if self.status.plan is None else None,
            pods=tuple(self.pods[name] for name in sorted(self.pods)),
            jobs=tuple(self.jobs[name] for name in sorted(self.jobs)),
            services=tuple(self.services[name] for name in sorted(self.services)),
            lingering=tuple(sorted(self.lingering)),
            settings=self.settings,
        )

    def decide(self) -> BenchDecision:
        return decide_benchmark(self.look(), self.now)

    def settle(self) -> None:
        """Look and do until nothing changes but with time."""
        for _ in range(MOST_LOOKS):
            decision = self.decide()
            is_done = decision.status == self.status and not decision.create and not decision.delete
            self.carry_out(decision)
            if is_done:
                return
        raise AssertionError("it does not come to rest")

    def carry_out(self, decision: BenchDecision) -> None:
        for deletion in decision.delete:
            self.delete(deletion)
        for manifest in decision.create:
            self.create(manifest)
        self.status = BenchmarkStatus.parse(decision.status.document())
        self.events += decision.events

    def edit(self, **spec: Any) -> None:
        """Sets fields of the spec; None removes one."""
        self.spec = {name: value for name, value in (self.spec | spec).items() if value is not None}
        self.generation += 1

    # What the API server does

    def create(self, manifest: Manifest) -> None:
        self.made += 1
        name, uid, kind = manifest["metadata"]["name"], f"uid-{self.made}", manifest["kind"]
        spec = manifest["spec"]
        if kind == "Pod":
            if name in self.pods:
                return
            self.pods[name] = ObservedBenchPod(name, uid, "Pending", is_deleting=False)
            variables = {one["name"]: one.get("value", "") for one in spec["containers"][0]["env"]}
            self.tasks[name] = json.loads(variables["CAPSTAN_BENCH"].replace("$$", "$"))
        elif kind == "TrainingJob":
            if name in self.jobs:
                return
            job = ObservedJob(NAMESPACE, name, uid, 1, self.now, False, spec, TrainingJobStatus())
            self.jobs[name] = ObservedTrialJob(job, live_pods=1)
        elif name not in self.services:
            self.services[name] = ObservedService(NAMESPACE, name, uid, 1, False, spec, InferenceServiceStatus())
            self.lingering.add(name)

    def delete(self, deletion: BenchDeletion) -> None:
        """At once, but for a service's pods, which linger until `clear` is called."""
        children: dict[str, dict[str, Any]] = {
            "Pod": self.pods,
            "TrainingJob": self.jobs,
            "InferenceService": self.services,
        }
        found = children[deletion.kind].get(deletion.name)
        uid = found.job.uid if isinstance(found, ObservedTrialJob) else getattr(found, "uid", None)
        if uid == deletion.uid:
            del children[deletion.kind][deletion.name]

    # What becomes of children

    def clear(self) -> None:
        """The pods of services that are gone are gone, too."""
        self.lingering &= set(self.services)

    def start(self, pod: str) -> None:
        self.made += 1
        self.pods[pod] = replace(self.pods[pod], phase="Running", ip=f"10.0.0.{self.made}")

    def end(self, pod: str, exit_code: int = 0, words: str | None = None, reason: str | None = None) -> None:
        says = words if words is not None else trial_end() if exit_code == 0 else ""
        phase, why = ("Failed" if exit_code else "Succeeded"), reason or ("Error" if exit_code else "Completed")
        ended = replace(self.pods[pod], phase=phase, exit_code=exit_code, exit_reason=why, message=says, waiting=None)
        self.pods[pod] = ended

    def report(self, verdict: str | None = None) -> None:
        """The report that is under way succeeds."""
        name = next(
            name for name, pod in self.pods.items() if "-report-" in name and pod.phase in ("Pending", "Running")
        )
        self.end(name, words=summary(verdict))

    def set_job(self, name: str, live_pods: int = 0, **status: Any) -> None:
        known = self.jobs[name]
        told = TrainingJobStatus.parse(known.job.status.document() | status)
        self.jobs[name] = ObservedTrialJob(replace(known.job, status=told), live_pods=live_pods)

    def end_job(self, name: str, how: str = "Succeeded", reason: str = "Completed", message: str = "done") -> None:
        condition = {"type": how, "status": "True", "reason": reason, "message": message, "lastTransitionTime": AT}
        self.set_job(name, phase=how, message=message, conditions=[condition], finishedAt=AT)

    def serve(self, name: str) -> None:
        """The service is ready."""
        facts = ("Accepted", "Serving", "UpToDate")
        conditions = [
            {"type": one, "status": "True", "reason": "Live", "message": "", "lastTransitionTime": AT} for one in facts
        ]
        status = {"conditions": conditions, "ready": "1/1", "url": f"http://{name}:8480"}
        told = InferenceServiceStatus.parse(status)
        self.services[name] = replace(self.services[name], status=told)
