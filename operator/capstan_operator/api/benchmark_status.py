"""The status of a Benchmark: how far it is, what it found, and what that means."""

from typing import Annotated, Literal

from pydantic import Field

from capstan_operator.api.meta import Condition
from capstan_runtime.contract.base import Record


class TrialStatus(Record):
    """One finished run. They run one after the other, in the order of this list."""

    trial: Annotated[str, Field(description="Its place in that order: t00, t01, …")]
    arm: Annotated[Literal["candidate", "baseline"], Field(description="Whose workload it ran.")] = "candidate"
    case: Annotated[str | None, Field(description="What was varied: batchSize=32; absent: nothing.")] = None
    attempt: Annotated[int, Field(description="Which attempt succeeded; those before it were repeated.")] = 1
    uid: Annotated[str | None, Field(description="Of the TrainingJob that it was; absent: it was a pod.")] = None


class RunningTrialStatus(Record):
    """The run, or the report, under way."""

    trial: Annotated[str, Field(description="Its place in the order.")]
    # Absent, not empty: kube-apiserver 1.20 makes null of an empty string in an object that a merge patch adds.
    case: Annotated[str | None, Field(description="What is varied; absent: nothing.")] = None
    attempt: Annotated[int, Field(description="1, and one more for each time it failed.")] = 1
    started_at: Annotated[str, Field(description="When this attempt was begun (RFC 3339).")]
    uid: Annotated[
        str | None,
        Field(description="Of what was made for it: a TrainingJob, an InferenceService or a pod; absent: not yet."),
    ] = None


class RepeatStatus(Record):
    """A run that failed or was preempted, and was repeated. Nothing of it is in the figures."""

    trial: Annotated[str, Field(description="Its place in the order.")]
    attempt: Annotated[int, Field(description="Which attempt failed.")]
    reason: Annotated[str, Field(description="Why, in one sentence.")]


class ProgressStatus(Record):
    """How far it is."""

    done: Annotated[int, Field(description="Runs that are finished.")] = 0
    total: Annotated[int, Field(description="Runs in all.")] = 0
    summary: Annotated[str | None, Field(description="done/total; absent: nothing was planned yet.")] = None


class FigureStatus(Record):
    """One metric over all repetitions."""

    metric: Annotated[str, Field(description="What was measured.")]
    case: Annotated[str | None, Field(description="At what: batchSize=32; absent: there is one case.")] = None
    unit: Annotated[str, Field(description="Unit of the numbers.")]
    n: Annotated[int, Field(description="Repetitions.")]
    median: Annotated[float, Field(description="Median over the repetitions.")]
    low: Annotated[float, Field(description="Lower end of its interval.")]
    high: Annotated[float, Field(description="Upper end of its interval.")]


class ComparisonStatus(Record):
    """One metric against the baseline."""

    metric: Annotated[str, Field(description="What was measured.")]
    case: Annotated[str | None, Field(description="At what; absent: there is one case.")] = None
    baseline: Annotated[float, Field(description="The baseline's median.")]
    candidate: Annotated[float, Field(description="The median now.")]
    effect_percent: Annotated[float, Field(description="The difference in percent of the baseline.")]
    low_percent: Annotated[float, Field(description="Lower end of its interval.")]
    high_percent: Annotated[float, Field(description="Upper end of its interval.")]
    p_value: Annotated[float, Field(description="How likely such a difference is when there is none.")]
    verdict: Annotated[
        Literal["Passed", "Regressed", "Improved", "Inconclusive"], Field(description="What that means.")
    ]


class EnvironmentStatus(Record):
    """What it was measured on."""

    fingerprint: Annotated[str, Field(description="Digest of the hardware: results compare only where it is equal.")]
    cpu: Annotated[str, Field(description="Model of the CPU.")]
    cores: Annotated[int, Field(description="CPUs that a process may use.")]
    gpus: Annotated[list[str], Field(description="Models of the GPUs.")] = []
    driver: Annotated[str | None, Field(description="Version of the GPUs' driver; absent: no GPU.")] = None
    kernel: Annotated[str, Field(description="Version of the kernel.")]
    packages: Annotated[dict[str, str], Field(description="Versions of what computes.")] = {}
    image: Annotated[str | None, Field(description="Image, with its digest; absent: not known.")] = None


class ReportStatus(Record):
    """Where the whole of it is."""

    place: Annotated[str, Field(description="Folder or URL that holds result.json, report.html and report.md.")]
    digest: Annotated[str, Field(description="Digest of result.json.")]
    log: Annotated[str, Field(description="The pod whose log is the report: kubectl logs <this>.")]
    judged: Annotated[str, Field(description="Digest of the baseline and gate that it was judged by.")]


class BenchmarkStatus(Record):
    """The truth about the benchmark, written by the operator alone."""

    observed_generation: Annotated[int | None, Field(description="Generation of the spec this describes.")] = None
    workload: Annotated[str | None, Field(description="Key of spec.workload.")] = None
    phase: Annotated[
        str, Field(description="Pending, Running, Reporting, Suspended, Succeeded, Failed or Invalid.")
    ] = "Pending"
    reason: Annotated[str, Field(description="Why it is in this phase, in one CamelCase word.")] = ""
    message: Annotated[str, Field(description="The same in one sentence.")] = ""
    progress: Annotated[ProgressStatus, Field(description="How far it is.")] = ProgressStatus()
    result: Annotated[str | None, Field(description="The headline figure with its interval.")] = None
    verdict: Annotated[
        Literal["Passed", "Regressed", "Improved", "Inconclusive"] | None,
        Field(description="What the comparison says; absent: there is no baseline, or no result yet."),
    ] = None
    verdict_reason: Annotated[str | None, Field(description="Why, in one sentence.")] = None
    figures: Annotated[
        list[FigureStatus], Field(description="The most important figures; the rest is in the report.")
    ] = []
    comparisons: Annotated[list[ComparisonStatus], Field(description="The most important comparisons.")] = []
    environment: Annotated[EnvironmentStatus | None, Field(description="What it was measured on.")] = None
    report: Annotated[ReportStatus | None, Field(description="Where the report is.")] = None
    reports: Annotated[
        int,
        Field(description="Reports that were begun, each for another baseline or gate; the newest is report-<this>."),
    ] = 0
    judging: Annotated[
        str | None, Field(description="Digest of the baseline and gate that the newest of them judges by.")
    ] = None
    running: Annotated[RunningTrialStatus | None, Field(description="The run, or the report, under way.")] = None
    trials: Annotated[list[TrialStatus], Field(description="Finished runs, in order.")] = []
    repeats: Annotated[list[RepeatStatus], Field(description="Runs that were repeated, newest last, at most 20.")] = []
    repeated: Annotated[int, Field(description="How many runs were repeated in all.")] = 0
    given_up: Annotated[
        str | None, Field(description="The run, or the report, that failed for good; the newest of repeats says why.")
    ] = None
    plan: Annotated[
        str | None, Field(description="Digest of the runs that were planned when the first was begun; they stay so.")
    ] = None
    started_at: Annotated[str | None, Field(description="When the first run was begun (RFC 3339).")] = None
    finished_at: Annotated[str | None, Field(description="When it ended (RFC 3339).")] = None
    conditions: Annotated[
        list[Condition],
        Field(
            description="Accepted, Progressing, Succeeded, Failed, NotRegressed.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = []
