"""`result.json`: everything a Benchmark found. What reports show is here; they compute nothing.

Its schema is versioned: a reader refuses a newer one, and a change that old readers would misread raises the version.
"""

from typing import Any

from capstan_runtime.contract.benchmark import (
    SCHEMA_VERSION,
    Arm,
    Better,
    Comparison,
    Environment,
    Figure,
    Finding,
    GateTask,
    Repeat,
    Verdict,
)
from capstan_runtime.contract.reference import ReferenceRow

QUANTILE_PERCENTS = (*(half / 2 for half in range(200)), 99.9, 100.0)
"""Of a Distribution: 0, 0.5, 1, …, 99, 99.5, 99.9, 100."""


class Series(Finding):
    """One metric in every trial of an arm: what all figures are computed from."""

    metric: str
    labels: dict[str, str] = {}
    unit: str
    better: Better
    arm: Arm
    values: tuple[float, ...]
    """One for each trial, in the order of repetitions."""
    trials: tuple[str, ...]
    """Their ids."""
    world: int = 1
    """Ranks that measured together in each trial."""
    is_headline: bool = False
    is_withdrawn: bool = False
    """Of one trial at least: then of all."""

    @property
    def is_shown_first(self) -> bool:
        return self.is_headline and not self.is_withdrawn


class Distribution(Finding):
    """All raw samples of one metric, trials of the candidate taken together, for plots only: samples of one run depend
    on each other, so nothing is inferred from them."""

    metric: str
    labels: dict[str, str] = {}
    unit: str
    count: int
    quantiles: tuple[float, ...]
    """At QUANTILE_PERCENTS."""


class ScalingRow(Finding):
    """One number of workers, against one."""

    mode: str
    """strong or weak."""
    workers: int
    speedup: float
    speedup_low: float
    speedup_high: float
    efficiency: float
    """Speed-up per worker; 1 is ideal."""
    efficiency_low: float
    efficiency_high: float
    serial_fraction: float | None = None
    """Karp and Flatt's: what the speed-up says of the part that is not divided. None: for one worker, and weak."""


class Ceiling(Finding):
    """One roof: a peak of arithmetic or a bandwidth, with its interval over trials."""

    name: str
    kind: str
    """compute or bandwidth."""
    unit: str
    """FLOP/s or B/s."""
    median: float
    low: float
    high: float


class Dot(Finding):
    """A kernel or model under the roof."""

    name: str
    intensity: float
    """FLOP per byte."""
    performance: float
    """FLOP/s."""
    low: float
    high: float
    ceiling: str
    """Name of the compute ceiling above it."""
    bound: str
    """compute or bandwidth."""
    share: float
    """Of what the roof allows at that intensity."""


class LawParameter(Finding):
    name: str
    value: float
    low: float
    high: float


class LawFit(Finding):
    """A scaling law that was fitted."""

    form: str
    """chinchilla or kaplan."""
    formula: str
    """For people."""
    parameters: tuple[LawParameter, ...]
    derived: tuple[LawParameter, ...] = ()
    """Such as the exponent of the best model size in compute."""
    objective: float
    """Sum of Huber losses on log loss."""
    gradient_norm: float
    """Of the objective at its minimum, with the logarithms of the runs taken about their middle."""
    resamples: int = 0
    """Of the runs, with replacement: what the intervals come from."""
    is_trusted: bool
    """False: an interval holds 0, or the points span too little; `warnings` says."""
    warnings: tuple[str, ...] = ()
    residuals: tuple[float, ...]
    """log(observed) - log(predicted), in the order of `Law.points`."""


class Law(Finding):
    """Scaling laws, and the runs they were fitted to."""

    points: tuple[tuple[float, float, float], ...]
    """(parameters, tokens, loss)."""
    fits: tuple[LawFit, ...]
    held_out: tuple[tuple[float, float, float, float], ...] = ()
    """Runs left out of a second fit: (parameters, tokens, loss, predicted loss)."""


class CollectiveFit(Finding):
    """t = latency + size / bandwidth, of one operation."""

    operation: str
    latency_seconds: float
    latency_low: float
    latency_high: float
    bandwidth_bytes_per_second: float
    bandwidth_low: float
    bandwidth_high: float


class Baseline(Finding):
    """What was compared with."""

    kind: str
    """benchmark, rerun, file or reference."""
    name: str
    environment: Environment | None = None
    is_comparable: bool
    problem: str | None = None
    """Why not."""
    differences: tuple[str, ...] = ()
    """Software that differs: `jax 0.10.1 -> 0.10.2`."""
    spec_differences: tuple[str, ...] = ()
    """What of workload, job and pods the two specs say differently: `job.workers.max 1 -> 4`."""


class BenchmarkResult(Finding):
    """One finished Benchmark."""

    schema_version: int = SCHEMA_VERSION
    name: str
    namespace: str
    uid: str
    workload: str
    spec: dict[str, Any]
    seed: int
    started_at: float
    """Seconds since 1970, of the first trial."""
    finished_at: float
    environments: tuple[Environment, ...]
    """Distinct ones of the candidate's trials; one, unless pods ran on different nodes."""
    control_seconds: tuple[float, ...] = ()
    """Median of the fixed piece of arithmetic in each trial of the candidate."""
    headline: str
    series: tuple[Series, ...]
    figures: tuple[Figure, ...]
    """Of the candidate, those with `is_headline` first."""
    distributions: tuple[Distribution, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    verdict: Verdict | None = None
    reason: str
    baseline: Baseline | None = None
    reference: ReferenceRow | None = None
    gate: GateTask | None = None
    repeats: tuple[Repeat, ...] = ()
    notes: tuple[str, ...] = ()
    scaling: tuple[ScalingRow, ...] = ()
    roofs: tuple[Ceiling, ...] = ()
    dots: tuple[Dot, ...] = ()
    law: Law | None = None
    collectives: tuple[CollectiveFit, ...] = ()
