"""One frozen snapshot of one Benchmark: everything `decide` may know."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from capstan_operator.api.benchmark_status import BenchmarkStatus
from capstan_operator.observe import ObservedJob, OperatorSettings
from capstan_operator.observe_serving import ObservedService


@dataclass(frozen=True, slots=True)
class ObservedBenchmark:
    """The Benchmark as the API server last showed it."""

    namespace: str
    name: str
    uid: str
    generation: int
    is_deleting: bool
    spec: Mapping[str, Any]
    """As the user wrote it: not validated yet."""
    status: BenchmarkStatus
    """The newer of what was last written and what was last seen."""
    queue: str | None = None
    """Name of the Kueue queue that its TrainingJobs wait in; None: in none."""
    priority_class: str | None = None
    """Name of the WorkloadPriorityClass they have there; None: the default."""


@dataclass(frozen=True, slots=True)
class ObservedBenchPod:
    """A pod that the Benchmark made, owned by it."""

    name: str
    uid: str
    phase: str
    """Pending, Running, Succeeded, Failed or Unknown."""
    is_deleting: bool
    ip: str | None = None
    """None until the node has given one."""
    waiting: str | None = None
    """Why it does not run yet, `Reason: message`; None when nothing is wrong."""
    exit_code: int | None = None
    """None while it runs, or nobody said."""
    exit_reason: str | None = None
    """OOMKilled, Error, or the pod's own reason such as Evicted."""
    message: str = ""
    """Its last words, or the end of its log."""


@dataclass(frozen=True, slots=True)
class ObservedTrialJob:
    """A TrainingJob that the Benchmark made, owned by it."""

    job: ObservedJob
    live_pods: int
    """Pods of it that have not ended."""


@dataclass(frozen=True, slots=True)
class ObservedKept:
    """The ConfigMap that spec.baseline names, as it was just read."""

    is_there: bool
    text: str | None = None
    """What stands under the key; None: there is no such key."""


@dataclass(frozen=True, slots=True)
class ObservedBenching:
    """All that is known of one Benchmark."""

    benchmark: ObservedBenchmark
    baseline: ObservedBenchmark | None = None
    """The Benchmark that spec.baseline names; None: it names none, or there is none."""
    kept: ObservedKept | None = None
    """The ConfigMap that it names; None: it names none, a run was made, or it may not be read."""
    pods: tuple[ObservedBenchPod, ...] = ()
    """Those owned by it (by uid), sorted by name."""
    jobs: tuple[ObservedTrialJob, ...] = ()
    """The same."""
    services: tuple[ObservedService, ...] = ()
    """The same."""
    lingering: tuple[str, ...] = ()
    """Names of InferenceServices of it, gone or there, that have pods, sorted."""
    settings: OperatorSettings = field(default_factory=OperatorSettings)
