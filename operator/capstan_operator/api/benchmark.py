"""Benchmark: its spec, and the rules that bind several fields."""

import math
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.api.placement import Placement
from capstan_operator.api.store import Store
from capstan_operator.api.training_job import Run
from capstan_runtime.contract.base import OneOf, Record, cel, rules_of
from capstan_runtime.contract.config import Positive
from capstan_runtime.contract.reference import names_for
from capstan_runtime.contract.workloads import (
    CheckpointIo,
    Collectives,
    ControlPlane,
    Inference,
    Load,
    Roofline,
    ScalingLaw,
)

FEWEST_TO_JUDGE = 5
"""Repetitions. Mann-Whitney cannot reach p < 0.05 below 4 against 4, and 5 against 5 leaves room for one outlier."""
_CHANCES = tuple(math.comb(2 * runs, runs) / 2 for runs in range(FEWEST_TO_JUDGE, 13))
"""One over the smallest p that Mann-Whitney can reach with so many runs on either side, from FEWEST_TO_JUDGE on.
More of them reach whatever anybody may want."""
MOST_TRIALS = 200
"""Of one Benchmark, both arms together: status lists them all."""

WarmupSteps = Annotated[
    int, Field(ge=0, le=1_000_000, description="Steps at the beginning of each run that do not count.")
]


class TrainingWorkload(Record):
    """Throughput and step time of spec.job."""

    batch_sizes: Annotated[
        list[Positive],
        Field(
            max_length=16,
            description="Global batch sizes; each is run in every repetition. Left out: that of the job.",
        ),
    ] = []
    warmup_steps: WarmupSteps = 10


class ScalingWorkload(Record):
    """Speed-up and efficiency of spec.job over numbers of workers. virtualRanks is the number of workers."""

    model_config = cel(("1 in self.workers", "'workers: holds no 1, which all others are compared with; add 1'"))

    workers: Annotated[
        list[Positive], Field(min_length=2, max_length=16, description="Numbers of workers; 1 must be among them.")
    ]
    strong: Annotated[bool, Field(description="Same global batch, divided over the workers.")] = True
    weak: Annotated[bool, Field(description="Same batch for each worker.")] = False
    warmup_steps: WarmupSteps = 10

    @model_validator(mode="after")
    def _has_a_base(self) -> Self:
        if 1 not in self.workers:
            raise ValueError("workers: holds no 1, which all others are compared with; add 1")
        if not (self.strong or self.weak):
            raise ValueError("strong and weak are both false: nothing is left to measure; set one of them")
        return self


class ServingWorkload(Load):
    """Latency and throughput of a service under open-loop load."""

    model_config = cel(
        *rules_of(Load),
        ("has(self.service) != has(self.url)", "'set exactly one of service, url'"),
    )

    service: Annotated[
        InferenceServiceSpec | None,
        Field(description="Made anew for every repetition, and removed. Set this or url."),
    ] = None
    url: Annotated[
        str | None,
        Field(
            pattern=r"^https?://",
            max_length=2048,
            description="Of a service that is there already. Set this or service.",
        ),
    ] = None

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.service is None) == (self.url is None):
            raise ValueError("set exactly one of service, url")
        return self


class Workload(OneOf):
    """What is measured. Set exactly one key."""

    training: Annotated[TrainingWorkload | None, Field(description="Training throughput over batch sizes.")] = None
    inference: Annotated[Inference | None, Field(description="A model called directly, over batch sizes.")] = None
    serving: Annotated[ServingWorkload | None, Field(description="A service under open-loop load.")] = None
    scaling: Annotated[ScalingWorkload | None, Field(description="Training over numbers of workers.")] = None
    collectives: Annotated[Collectives | None, Field(description="Bandwidth between processes.")] = None
    roofline: Annotated[Roofline | None, Field(description="Peak arithmetic and bandwidth of a machine.")] = None
    scaling_law: Annotated[ScalingLaw | None, Field(description="Loss over model size and data.")] = None
    checkpoint: Annotated[CheckpointIo | None, Field(description="Saving, restoring and verifying state.")] = None
    control_plane: Annotated[ControlPlane | None, Field(description="TrainingJobs per second.")] = None


class BenchmarkBaseline(Record):
    """Another Benchmark of the same namespace, with the same results.store."""

    name: Annotated[str, Field(min_length=1, max_length=253, description="Its name.")]
    rerun: Annotated[
        bool,
        Field(
            description="Run its workload again, in turns with this one's, instead of using what it found: then "
            "nothing that changes with time, a hot machine or a busy neighbour, can pass for a difference."
        ),
    ] = False


class ConfigMapBaseline(Record):
    """A result.json in a ConfigMap: kubectl create configmap NAME --from-file=result.json."""

    name: Annotated[str, Field(min_length=1, max_length=253, description="Name of the ConfigMap.")]
    key: Annotated[str, Field(min_length=1, max_length=253, description="Key in it.")] = "result.json"


class Baseline(OneOf):
    """What the result is compared with. Set exactly one key."""

    benchmark: Annotated[BenchmarkBaseline | None, Field(description="Another Benchmark.")] = None
    config_map: Annotated[ConfigMapBaseline | None, Field(description="A result that was kept.")] = None
    reference: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=63,
            description="Name of a published row that ships with the product. It is shown beside the result, and never "
            "judged against it where the hardware is another.",
        ),
    ] = None


class Gate(Record):
    """When a difference is one."""

    minimum_effect_percent: Annotated[
        float, Field(gt=0, le=1000, description="Differences below this are none, however certain.")
    ] = 5.0
    confidence: Annotated[float, Field(ge=0.8, lt=1, description="Of intervals and tests.")] = 0.95
    metrics: Annotated[
        list[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=63)]],
        Field(max_length=32, description="Metrics that are judged. Left out: the headline figures."),
    ] = []


class Results(Record):
    """Where raw samples, results and reports are kept."""

    store: Annotated[
        Store, Field(description="Below <namespace>/<benchmark>/<uid>. Trainers keep their checkpoints in it, too.")
    ]


class Pods(Placement):
    """The benchmark's own pods. Those of jobs and services have their own."""

    image: Annotated[
        str | None, Field(min_length=1, description="Container image. Left out: the operator's for what is measured.")
    ] = None
    gpus: Annotated[int, Field(ge=0, le=16, description="NVIDIA GPUs per pod; 0 measures the CPU.")] = 0
    service_account_name: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=253,
            description="For workload controlPlane: an account that may create, list, watch and delete TrainingJobs, "
            "and list and watch Pods, in the namespace.",
        ),
    ] = None
    pod_patch: Annotated[
        dict[str, Any] | None,
        Field(
            description="Merged into every such pod (strategic merge). The container is called bench.",
            json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
        ),
    ] = None


_RUNS_JOBS = "has(self.workload.training) || has(self.workload.scaling)"
_RUNS_GRID = "(has(self.workload.scalingLaw) && has(self.workload.scalingLaw.grid))"
_ONCE = "(has(self.workload.scalingLaw) && !has(self.workload.scalingLaw.grid))"
_NEEDS_JOB = "job: is missing, and this workload runs TrainingJobs; add the job to run"
_NO_JOB = "job: is run by no part of this workload; remove it"
_NEEDS_BASELINE = "gate: compares with a baseline, and there is none; add spec.baseline, or remove gate"
_NOT_REPEATED = "gate: this scalingLaw runs nothing that could be repeated; remove gate, or use scalingLaw.grid"
_NO_REFERENCE = "baseline.reference: a published row is never a gate, only shown beside; remove gate"
_CEL_CHANCES = f"[{', '.join(map(str, _CHANCES))}]"
_BELOW_CHANCE = (
    f"!has(self.gate) || self.repetitions < {FEWEST_TO_JUDGE} || self.repetitions >= {FEWEST_TO_JUDGE + len(_CHANCES)} "
    f"|| (1.0 - self.gate.confidence) * {_CEL_CHANCES}[self.repetitions - {FEWEST_TO_JUDGE}] >= 1.0",
    "'repetitions: ' + string(self.repetitions) + ' cannot reach gate.confidence ' + string(self.gate.confidence) + "
    "', however large a difference is; raise repetitions to ' + "
    f"string({FEWEST_TO_JUDGE} + {_CEL_CHANCES}.filter(chance, (1.0 - self.gate.confidence) * chance < 1.0).size()) + "
    "', or lower gate.confidence'",
)
_FROZEN = ("workload", "repetitions", "seed", "results", "pods")


class BenchmarkSpec(Record):
    """What to measure and what to compare it with. The operator never writes here."""

    model_config = cel(
        (f"!({_RUNS_JOBS} || {_RUNS_GRID}) || has(self.job)", f"'{_NEEDS_JOB}'"),
        (f"({_RUNS_JOBS} || {_RUNS_GRID}) || !has(self.job)", f"'{_NO_JOB}'"),
        ("!has(self.gate) || has(self.baseline)", f"'{_NEEDS_BASELINE}'"),
        ("!has(self.gate) || !has(self.baseline) || !has(self.baseline.reference)", f"'{_NO_REFERENCE}'"),
        (f"!has(self.gate) || !{_ONCE}", f"'{_NOT_REPEATED}'"),
        (
            f"!has(self.gate) || self.repetitions >= {FEWEST_TO_JUDGE}",
            f"'repetitions: ' + string(self.repetitions) + ' cannot be judged; a gate needs {FEWEST_TO_JUDGE} or more: "
            "raise repetitions, or remove gate'",
        ),
        _BELOW_CHANCE,
        *(
            (
                f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})",
                f"'{field}: cannot change after the benchmark was created; create one with a new name'",
            )
            for field in (*_FROZEN, "job")
        ),
    )

    workload: Annotated[Workload, Field(description="What is measured.")]
    job: Annotated[
        Run | None,
        Field(description="The TrainingJob that is run, for workloads training, scaling and scalingLaw.grid."),
    ] = None
    repetitions: Annotated[
        int,
        Field(
            ge=1, le=100, description="Runs of each case in fresh processes, in turns; a run is the unit of statistics."
        ),
    ] = 5
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="Of the order of runs and of resampling.")] = 0
    baseline: Annotated[
        Baseline | None, Field(description="What the result is compared with. Left out: it is only reported.")
    ] = None
    gate: Annotated[
        Gate | None,
        Field(description="When a difference is one. A change is judged at once, and nothing is measured again."),
    ] = None
    results: Annotated[Results, Field(description="Where raw samples, results and reports are kept.")]
    pods: Annotated[Pods, Field(description="The benchmark's own pods.")] = Pods()
    trial_deadline_seconds: Annotated[
        int, Field(ge=10, le=604800, description="Seconds one run may take; then it has failed, and is repeated.")
    ] = 3600
    suspend: Annotated[
        bool, Field(description="Begin no further run; the one under way is stopped. false again goes on.")
    ] = False
    ttl_seconds_after_finished: Annotated[
        int | None,
        Field(
            ge=0, description="Seconds after the end until pods are removed. The Benchmark stays. Left out: pods stay."
        ),
    ] = None

    @classmethod
    def parse(cls, document: Any) -> Self:
        """The spec a JSON document describes. Types are strict, as the API server's are: "3" is not 3."""
        return cls.model_validate(document, strict=True, by_alias=True, by_name=False)

    @property
    def runs_jobs(self) -> bool:
        """Trials are TrainingJobs."""
        law = self.workload.scaling_law
        return self.workload.kind in ("training", "scaling") or (law is not None and law.grid is not None)

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.runs_jobs and self.job is None:
            raise ValueError(_NEEDS_JOB)
        if not self.runs_jobs and self.job is not None:
            raise ValueError(_NO_JOB)
        return self

    @model_validator(mode="after")
    def _gate_can_judge(self) -> Self:
        if self.gate is None:
            return self
        if self.baseline is None:
            raise ValueError(_NEEDS_BASELINE)
        if self.baseline.reference is not None:
            raise ValueError(_NO_REFERENCE)
        law = self.workload.scaling_law
        if law is not None and law.grid is None:
            raise ValueError(_NOT_REPEATED)
        if self.repetitions < FEWEST_TO_JUDGE:
            raise ValueError(
                f"repetitions: {self.repetitions} cannot be judged; a gate needs {FEWEST_TO_JUDGE} or more: raise "
                "repetitions, or remove gate"
            )
        too_few = [chance for chance in _CHANCES if (1 - self.gate.confidence) * chance < 1]
        if self.repetitions < FEWEST_TO_JUDGE + len(too_few):
            raise ValueError(
                f"repetitions: {self.repetitions} cannot reach gate.confidence {self.gate.confidence}, however large a "
                f"difference is; raise repetitions to {FEWEST_TO_JUDGE + len(too_few)}, or lower gate.confidence"
            )
        return self

    @model_validator(mode="after")
    def _reference_is_known(self) -> Self:
        name = self.baseline.reference if self.baseline else None
        known = names_for(self.workload.kind)
        if name is not None and name not in known:
            choices = f"choose one of {', '.join(known)}" if known else "remove it: there is none for this workload"
            raise ValueError(f"baseline.reference: {name} is no published row of {self.workload.kind}; {choices}")
        return self
