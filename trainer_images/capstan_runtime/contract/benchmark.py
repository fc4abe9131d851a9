"""What passes between a Benchmark's operator and its pods, and what is kept: tasks, raw results, and the summary.

    operator --BenchTask--> trial pod --TrialResult--> store
                            trainer   --TrainingRecord-> store      (workloads that are TrainingJobs)
    operator --BenchTask--> report pod: reads the store, writes result and reports there --Summary--> operator

A trial is one run in fresh processes: the unit of all statistics.
"""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from capstan_runtime.contract.base import OneOf, Record
from capstan_runtime.contract.workloads import (
    CheckpointIo,
    Collectives,
    ControlPlane,
    Inference,
    Load,
    Roofline,
    ScalingLaw,
)

TASK = "CAPSTAN_BENCH"
"""Environment variable that holds the JSON of a BenchTask. `env.STORE` is then the folder of the namespace in
results.store: keys begin with the name of a Benchmark or of a TrainingJob, and its uid."""
COORDINATOR = "CAPSTAN_BENCH_COORDINATOR"
"""`address:port` where the ranks of a trial meet. Unset: this is rank 0, which listens at `env.POD_IP`, port
`env.BENCH_COORDINATOR_PORT`."""
MOUNTED_BASELINE = "/etc/capstan/baseline"
"""Folder where `baseline.configMap` is mounted."""
UNKNOWN_GPU = "unknown"
"""In `Environment.gpus`: comparable with nothing, not even with another unknown one."""
SCHEMA_VERSION = 1
"""Of results. A reader refuses a newer one."""

Arm = Literal["candidate", "baseline"]
Better = Literal["higher", "lower", "neither"]
Verdict = Literal["Passed", "Regressed", "Improved", "Inconclusive"]
VERDICT_EXIT: dict[Verdict, int] = {"Passed": 0, "Improved": 0, "Regressed": 3, "Inconclusive": 4}
"""Exit codes of `capstan bench`, for CI and workflows. 1: there is no verdict, because something did not work; 2: wrong
usage."""


class Finding(Record):
    """A record of measured numbers. In JSON those that are not finite are the strings Infinity, -Infinity and NaN: a
    request that was never answered took infinitely long, and null would lose that."""

    model_config = ConfigDict(ser_json_inf_nan="strings")


class Environment(Record):
    """What a trial ran on and with."""

    node: str = ""
    """Name of the node or host. Not part of the hardware: alike nodes are alike."""
    cpu: str
    """Model name."""
    cores: int
    """That the process may use."""
    memory_bytes: int
    gpus: tuple[str, ...] = ()
    """Model name of each that the process sees; UNKNOWN_GPU where there are some that could not be told."""
    driver: str | None = None
    """Of the GPUs."""
    governor: str | None = None
    """Of the CPU's frequency; None: the machine does not say."""
    threads: int | None = None
    """OMP_NUM_THREADS; None: as many as the libraries like."""
    kernel: str
    python: str
    packages: dict[str, str] = {}
    """Versions of what computes: capstan, numpy, jax, torch, …"""
    image: str | None = None
    """Reference as the pod asks for it: with a digest only where it is written there. A tag may have moved."""

    @property
    def hardware(self) -> dict[str, Any]:
        """What must be the same for two results to be comparable. Software may differ: that is what is compared."""
        return {
            "cpu": self.cpu,
            "cores": self.cores,
            "gpus": sorted(self.gpus),
            "driver": self.driver,
            "threads": self.threads,
        }

    @property
    def fingerprint(self) -> str:
        """12 hex digits over `hardware`."""
        text = json.dumps(self.hardware, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class Point(Finding):
    """One figure of one trial."""

    metric: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """samples_per_second, latency_p99_seconds, bus_bandwidth_bytes_per_second, …; ends with its unit."""
    labels: dict[str, str] = {}
    """What it was measured at: {"batchSize": "32"}. With the metric, its identity over trials and baselines."""
    unit: str
    """For people: samples/s, s, B/s, FLOP/s."""
    better: Better
    value: float
    """The one number that stands for this trial, such as the median of `samples`."""
    samples: tuple[float, ...] = ()
    """Raw, in the order of measurement, warm-up left out; at most 10,000 (then every k-th). Same unit as `value` unless
    `samples_unit` says otherwise."""
    samples_unit: str | None = None
    is_headline: bool = False
    """Shown first, and judged when the gate names no metrics."""
    is_withdrawn: bool = False
    """What measured it was in the way, so it says nothing of what was to be measured: shown, but neither first nor
    judged, whatever the gate names. A note says why."""


class TrialResult(Finding):
    """`<benchmark>/<uid>/trials/<trial>.<attempt>.json`; written whole or not at all."""

    schema_version: int = SCHEMA_VERSION
    trial: str
    """`t07`: its place in the order in which trials run."""
    attempt: Annotated[int, Field(ge=1)] = 1
    environment: Environment
    world: Annotated[int, Field(ge=1)] = 1
    """Ranks that measured together."""
    peers: tuple[Environment, ...] = ()
    """What the other ranks ran on."""
    control_seconds: tuple[float, ...] = ()
    """What a fixed piece of arithmetic took before and after the measurement: tells a slow machine from slow code."""
    points: tuple[Point, ...]
    notes: tuple[str, ...] = ()
    """What a reader must know: a generator that was itself the bottleneck, samples that were thinned out."""
    started_at: float
    """Seconds since 1970."""
    finished_at: float


class TrainingRecord(Finding):
    """How long the steps of one attempt of a TrainingJob took, as one rank saw it:
    `<job>/<uid>/record.<fence>.r<rank>.json`, written when the attempt ends if `RunConfig.record` is set."""

    schema_version: int = SCHEMA_VERSION
    job: str
    fence: int
    rank: int
    world: int
    first_step: int
    """Steps done when the attempt began: above 0 it went on from a checkpoint."""
    steps: tuple[int, ...]
    """Steps done at the end of each window. Windows follow each other without a gap: the first is one step, which
    compiles; those after it end with every `logEverySteps`-th step, and with the last."""
    step_seconds: tuple[float, ...]
    """Mean seconds per step in each window, saving and evaluating left out."""
    samples_per_step: int
    tokens_per_sample: int | None = None
    """None: samples are not made of tokens."""
    parameters: int
    """Weights of the model, all of them."""
    metrics: dict[str, float] = {}
    """Newest values at the end: loss, validation_loss, accuracy."""
    environment: Environment
    control_seconds: tuple[float, ...] = ()
    """As in TrialResult: before the first step and after the last."""
    is_complete: bool
    """All steps were done."""
    started_at: float | None = None
    """Seconds since 1970, of the attempt; None: not known."""
    finished_at: float | None = None


class TrialWork(OneOf):
    """What a trial pod does."""

    inference: Inference | None = None
    serving: Load | None = None
    """Against `TrialTask.url`."""
    collectives: Collectives | None = None
    roofline: Roofline | None = None
    scaling_law: ScalingLaw | None = None
    """`grid` never comes here: its trials are TrainingJobs."""
    checkpoint: CheckpointIo | None = None
    control_plane: ControlPlane | None = None


class TrialTask(Record):
    """One rank of one trial."""

    trial: str
    attempt: int = 1
    seed: int
    """Of everything random in it; differs between repetitions, and is the same for both arms of one."""
    work: TrialWork
    rank: int = 0
    world: int = 1
    url: str | None = None
    """Of the service under load."""
    service: str | None = None
    """Name of the InferenceService that was made for it, which is that of its model; None: none was."""
    operator_url: str | None = None
    """Where the operator's /metrics are; None: not known."""
    deadline_seconds: float
    """After which the pod ends itself."""


class TrialRef(Record):
    """A trial that was finished, for who reads the results."""

    trial: str
    attempt: int
    arm: Arm
    repetition: int
    """0, 1, …"""
    labels: dict[str, str] = {}
    """What the operator varied, added to those of its points: {"batchSize": "32"}, {"workers": "2", "mode": "strong"},
    {"model": "s", "steps": "200"}."""
    job: str | None = None
    """`<name>/<uid>` of the TrainingJob that it was; None: a pod, and a TrialResult."""
    service: str | None = None
    """Name of the InferenceService that was under load; None: none."""


class Repeat(Record):
    """A trial that had to be run again."""

    trial: str
    attempt: int
    """Which failed."""
    reason: str


class BaselineBenchmark(Record):
    """Another Benchmark's result."""

    name: str
    uid: str
    is_rerun: bool = False
    """Its workload was run again, in turns with this one's: trials of arm `baseline`. The kept result is not used."""


class BaselineTask(OneOf):
    """What the result is compared with."""

    benchmark: BaselineBenchmark | None = None
    file: str | None = None
    """Path in the pod of a result.json."""
    reference: str | None = None
    """Name of a row of `reference.REFERENCE_ROWS`."""


class GateTask(Record):
    """When a difference counts."""

    minimum_effect_percent: float
    confidence: float
    metrics: tuple[str, ...] = ()
    """Empty: all headline metrics."""


class ReportTask(Record):
    """What to put together at the end."""

    workload: str
    """Key of spec.workload: training, inference, serving, scaling, collectives, roofline, scalingLaw, checkpoint,
    controlPlane."""
    spec: dict[str, Any]
    """The Benchmark's spec, as its user wrote it; for readers of the report."""
    warmup_steps: int = 0
    """Steps of every TrainingJob that do not count."""
    trials: tuple[TrialRef, ...]
    repeats: tuple[Repeat, ...] = ()
    baseline: BaselineTask | None = None
    gate: GateTask | None = None
    """None with a baseline: compared, but by the defaults."""


class BenchTask(Record):
    """What a bench pod is told. Exactly one of `trial` and `report` is set."""

    benchmark: str
    """Name; the namespace is that of the pod."""
    namespace: str
    uid: str
    """Of the Benchmark: tells it from its predecessor of the same name."""
    seed: int
    trial: TrialTask | None = None
    report: ReportTask | None = None


class Figure(Finding):
    """One metric over all trials of an arm."""

    metric: str
    labels: dict[str, str] = {}
    unit: str
    better: Better
    n: int
    """Trials."""
    median: float
    low: float
    """Lower end of the bootstrap interval of the median."""
    high: float
    outliers: int = 0
    """Trials further than 3.5 scaled median absolute deviations from the median. They stay in."""
    is_headline: bool = False


class Comparison(Finding):
    """One metric against the baseline."""

    metric: str
    labels: dict[str, str] = {}
    unit: str
    baseline: float
    """Median."""
    candidate: float
    effect_percent: float
    """Candidate over baseline, minus 100 %: Hodges-Lehmann on logarithms. The sign is that of the metric, whichever
    direction is better."""
    low_percent: float
    high_percent: float
    p_value: float
    """Mann-Whitney or, where a baseline was run in turns often enough to compare by pairs, Wilcoxon; exact, two-sided,
    adjusted for the number of metrics compared (Holm)."""
    verdict: Verdict
    reason: str
    """In one sentence."""


class Summary(Record):
    """Termination message of the report pod: at most 4,096 bytes of JSON, so long lists are cut and say so."""

    headline: str
    """For the RESULT column: `1,204 samples/s ±1.3 % in 5 runs at batch size 32`."""
    verdict: Verdict | None = None
    """None: there is no baseline."""
    reason: str
    """Why, in one sentence; without a baseline, what was measured."""
    figures: tuple[Figure, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    left_out: int = 0
    """Figures and comparisons that are only in the result file."""
    environment: Environment
    fingerprint: str
    result_digest: str
    """`blake3:<64 hex>` of result.json."""
    place: str
    """Folder or URL where result.json and the reports are."""


class TrialEnd(Record):
    """Termination message of a trial pod."""

    is_ok: bool
    message: str
    """One line: what was measured, or what went wrong."""
    is_final: bool = False
    """Trying again is of no use: the task itself is wrong."""
