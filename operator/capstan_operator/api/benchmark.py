"""Benchmark: its spec, and the rules that bind several fields."""

import re
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from capstan_operator.api.benchmark_rules import (
    FEWEST_TO_JUDGE,
    HAS_QUERY,
    HAS_USER,
    NEEDS_BASELINE,
    NEEDS_JOB,
    NO_JOB,
    NO_REFERENCE,
    NOT_REPEATED,
    PLANNED,
    QUERY_IN_URL,
    RULES,
    URL_RULES,
    USER_IN_URL,
    WINDOW_FIX,
    repetitions_for,
    rows_of,
)
from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.api.managed_by import MANAGED_BY_RULE, ManagedBy
from capstan_operator.api.placement import Placement
from capstan_operator.api.store import Store
from capstan_operator.api.training_job import Run
from capstan_runtime.contract.base import OneOf, Positive, Record, cel, once, require_once, rules_of
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

MOST_TRIALS = 200
"""Of one Benchmark, both arms together: status lists them all."""

WarmupSteps = Annotated[
    int, Field(ge=0, le=1_000_000, description="Steps at the beginning of each run that do not count.")
]


class TrainingWorkload(Record):
    """Throughput and step time of spec.job."""

    model_config = cel(once("batchSizes"))

    batch_sizes: Annotated[
        list[Positive],
        Field(
            max_length=16,
            description="Global batch sizes; each is run in every repetition. Left out: that of the job.",
        ),
    ] = []
    warmup_steps: WarmupSteps = 10

    @model_validator(mode="after")
    def _tells_figures_apart(self) -> Self:
        require_once(batchSizes=self.batch_sizes)
        return self


_NOTHING_TO_SCALE = "strong: false, and weak is false, too, so nothing is left to measure; set one of them"


class ScalingWorkload(Record):
    """Speed-up and efficiency of spec.job over numbers of workers. virtualRanks is the number of workers."""

    model_config = cel(
        ("1 in self.workers", "'workers: holds no 1, which all others are compared with; add 1'"),
        ("self.strong || self.weak", f"'{_NOTHING_TO_SCALE}'"),
        once("workers"),
    )

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
            raise ValueError(_NOTHING_TO_SCALE)
        return self

    @model_validator(mode="after")
    def _tells_figures_apart(self) -> Self:
        require_once(workers=self.workers)
        return self


class ServingWorkload(Load):
    """Latency and throughput of a service under open-loop load."""

    model_config = cel(
        *rules_of(Load),
        ("has(self.service) != has(self.url)", "'set exactly one of service, url'"),
        *URL_RULES,
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

    @model_validator(mode="after")
    def _url_is_a_place(self) -> Self:
        if self.url is not None and re.search(HAS_USER, self.url):
            raise ValueError(USER_IN_URL)
        if self.url is not None and re.search(HAS_QUERY, self.url):
            raise ValueError(f"url: {self.url} {QUERY_IN_URL}")
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


OBJECT_NAME = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"
"""As Kubernetes has names of ConfigMaps (RFC 1123): the operator fetches it, so a path would lead elsewhere."""
_KEY = r"^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$"
"""As Kubernetes has keys of a ConfigMap: each is the name of a file, so neither "." nor what begins with ".."."""


class ConfigMapBaseline(Record):
    """A result.json in a ConfigMap: kubectl create configmap NAME --from-file=result.json."""

    name: Annotated[str, Field(min_length=1, pattern=OBJECT_NAME, max_length=253, description="Name of the ConfigMap.")]
    key: Annotated[str, Field(min_length=1, pattern=_KEY, max_length=253, description="Key in it.")] = "result.json"


class Baseline(OneOf):
    """What the result is compared with. Set exactly one key."""

    benchmark: Annotated[BenchmarkBaseline | None, Field(description="Another Benchmark.")] = None
    config_map: Annotated[ConfigMapBaseline | None, Field(description="A result that was kept.")] = None
    reference: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=63,
            description="Name of a reference row that ships with the product: figures that were given with its "
            "requirements, measured by others. It is shown beside the result, and never judged against it.",
        ),
    ] = None


class Gate(Record):
    """When a difference is one."""

    model_config = cel(once("metrics"))

    minimum_effect_percent: Annotated[
        float, Field(gt=0, le=1000, description="Differences below this are none, however certain.")
    ] = 5.0
    confidence: Annotated[float, Field(ge=0.8, lt=1, description="Of intervals and tests.")] = 0.95
    metrics: Annotated[
        list[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=63)]],
        Field(max_length=32, description="Metrics that are judged. Left out: the headline figures."),
    ] = []

    @model_validator(mode="after")
    def _judges_each_once(self) -> Self:
        require_once(metrics=self.metrics)
        return self


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


class BenchmarkSpec(Record):
    """What to measure and what to compare it with. The operator never writes here."""

    model_config = cel(*RULES, MANAGED_BY_RULE)

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
    managed_by: ManagedBy = None

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
            raise ValueError(NEEDS_JOB)
        if not self.runs_jobs and self.job is not None:
            raise ValueError(NO_JOB)
        return self

    @model_validator(mode="after")
    def _warmup_leaves_a_window(self) -> Self:
        kind, measured = self.workload.kind, self.workload.training or self.workload.scaling
        if measured is None or self.job is None:
            return self
        steps, every, warmup = self.job.training.steps, self.job.training.log_every_steps, measured.warmup_steps
        # Windows end with every logEverySteps-th step; the first one that begins after the warm-up must be whole. How
        # many steps epochs are, only the data says.
        if steps is not None and -(-warmup // every) * every + every > steps:
            raise ValueError(
                f"workload.{kind}.warmupSteps: {warmup} leaves no whole window of job.training.logEverySteps {every} "
                f"of the {steps} steps, so nothing would be measured; {WINDOW_FIX}"
            )
        return self

    @model_validator(mode="after")
    def _gate_can_judge(self) -> Self:
        if self.gate is None:
            return self
        if self.baseline is None:
            raise ValueError(NEEDS_BASELINE)
        if self.baseline.reference is not None:
            raise ValueError(NO_REFERENCE)
        law = self.workload.scaling_law
        if law is not None and law.grid is None:
            raise ValueError(NOT_REPEATED)
        if self.repetitions < FEWEST_TO_JUDGE:
            raise ValueError(
                f"repetitions: {self.repetitions} cannot be judged; a gate needs {FEWEST_TO_JUDGE} or more: raise "
                "repetitions, or remove gate"
            )
        needed = repetitions_for(self.gate.confidence)
        if self.repetitions < needed:
            raise ValueError(
                f"repetitions: {self.repetitions} cannot reach gate.confidence {self.gate.confidence}, however large a "
                f"difference is; raise repetitions to {needed}, or lower gate.confidence"
            )
        return self

    @model_validator(mode="after")
    def _reference_is_known(self) -> Self:
        name = self.baseline.reference if self.baseline else None
        if name is not None and name not in names_for(self.workload.kind):
            raise ValueError(f"baseline.reference: {name} is no reference row of {rows_of(self.workload.kind)}")
        return self

    @model_validator(mode="after")
    def _deadline_holds_the_plan(self) -> Self:
        kind, work = self.workload.kind, self.workload
        planned = 0.0
        if work.inference is not None:
            planned = len(work.inference.batch_sizes) * (work.inference.seconds + work.inference.warmup_seconds)
        elif work.serving is not None:
            planned = len(work.serving.rates) * work.serving.seconds + work.serving.warmup_seconds
        elif work.roofline is not None:
            planned = len(work.roofline.dtypes) * len(work.roofline.matrix_sizes) * work.roofline.seconds
        if planned > self.trial_deadline_seconds:
            raise ValueError(
                f"trialDeadlineSeconds: {self.trial_deadline_seconds} cannot hold the {planned:.12g} s that {kind} "
                f"measures in one run, {PLANNED[kind][0]}; raise it, or lower those"
            )
        return self
