"""One look at a Benchmark whose spec is valid, with all that follows from it alone."""

from dataclasses import dataclass, replace
from functools import cached_property

from capstan_operator.api.benchmark import BenchmarkSpec
from capstan_operator.api.benchmark_status import BenchmarkStatus
from capstan_operator.build.benchmark_children import child_name
from capstan_operator.decide.bench.baseline import Missing, Standard, judged_by
from capstan_operator.decide.bench.plan import Trial
from capstan_operator.observe_benchmark import ObservedBenching, ObservedBenchPod, ObservedTrialJob
from capstan_operator.observe_serving import ObservedService

MOST_ATTEMPTS = 3
"""Of one run, and of the report."""
REPORT = "report"


@dataclass(frozen=True)
class Look:
    """Changed only as a whole: what is recorded makes another look."""

    seen: ObservedBenching
    spec: BenchmarkSpec
    standard: Standard | Missing
    trials: tuple[Trial, ...]
    """The plan."""
    digest: str
    """Of the plan."""
    status: BenchmarkStatus
    now: float

    def after(self, status: BenchmarkStatus) -> "Look":
        return replace(self, status=status)

    @cached_property
    def judged(self) -> str:
        """Digest of what the report is to judge by."""
        return judged_by(self.spec)

    @property
    def report(self) -> str:
        """Name of the report that is to be made, as a run is called. One for each change of baseline or gate, and
        never that of an earlier one: what that one's pod said may be of a result that was written over since."""
        is_begun = self.status.judging == self.judged
        return f"{REPORT}-{self.status.reports + (0 if is_begun else 1)}"

    @property
    def is_measured(self) -> bool:
        """All runs are finished."""
        return len(self.status.trials) == len(self.trials)

    @property
    def is_reported(self) -> bool:
        """And judged by what the spec says."""
        return self.is_measured and self.status.report is not None and self.status.report.judged == self.judged

    @property
    def has_failed(self) -> bool:
        """A run was given up, or the report that is to be made."""
        name = self.status.given_up
        return name is not None and (not name.startswith(REPORT) or name == self.report)

    @property
    def is_over(self) -> bool:
        return self.has_failed or self.is_reported

    @property
    def next_run(self) -> str | None:
        """Trial, or report, that is due; None: all is done."""
        if self.is_over:
            return None
        return self.report if self.is_measured else self.trials[len(self.status.trials)].name

    @property
    def current(self) -> Trial | None:
        """The trial under way; None: there is none, or it is the report."""
        running = self.status.running
        return next((trial for trial in self.trials if running and trial.name == running.trial), None)

    def failures_of(self, trial: str) -> int:
        """How often this run failed."""
        return sum(repeat.trial == trial for repeat in self.status.repeats)

    def arm_of(self, trial: Trial) -> BenchmarkSpec:
        """The spec whose workload it runs."""
        rerun = self.standard.rerun if isinstance(self.standard, Standard) else None
        return rerun if trial.arm == "baseline" and rerun is not None else self.spec

    def child(self, trial: str, attempt: int) -> str:
        return child_name(self.seen.benchmark.name, trial, attempt)

    def pod(self, name: str) -> ObservedBenchPod | None:
        return next((pod for pod in self.seen.pods if pod.name == name), None)

    def job(self, name: str) -> ObservedTrialJob | None:
        return next((one for one in self.seen.jobs if one.job.name == name), None)

    def service(self, name: str) -> ObservedService | None:
        return next((service for service in self.seen.services if service.name == name), None)


def pod_names(look: Look, trial: Trial, attempt: int) -> tuple[str, ...]:
    """Of all ranks of an attempt, rank 0 first."""
    name, world = look.child(trial.name, attempt), world_of(look, trial)
    return (name,) if world == 1 else tuple(f"{name}-r{rank}" for rank in range(world))


def world_of(look: Look, trial: Trial) -> int:
    """Pods of one attempt."""
    collectives = look.arm_of(trial).workload.collectives
    return collectives.workers if collectives else 1


def makes_service(look: Look, trial: Trial) -> bool:
    """It puts load on an InferenceService that is made for it."""
    serving = look.arm_of(trial).workload.serving
    return serving is not None and serving.service is not None
