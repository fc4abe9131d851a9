"""One frozen snapshot of one TrainingJob: everything `decide` may know."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_runtime.contract.state import State


@dataclass(frozen=True, slots=True)
class ObservedJob:
    """The TrainingJob as the API server last showed it."""

    namespace: str
    name: str
    uid: str
    generation: int
    created_at: float
    """Seconds since 1970."""
    is_deleting: bool
    spec: Mapping[str, Any]
    """As the user wrote it: not validated yet."""
    status: TrainingJobStatus
    """The newer of what was last written and what was last seen."""
    queue: str | None = None
    """Name of the LocalQueue that is to admit its pods; None: nobody but the scheduler decides."""
    priority_class: str | None = None
    """Name of the WorkloadPriorityClass they have there; None: the default."""
    profile_request: str | None = None
    """What its annotation asks to be traced; None: it has none."""
    host_paths: frozenset[str] = frozenset()
    """Folders of nodes with which the Benchmark that made it has begun."""


@dataclass(frozen=True, slots=True)
class ObservedPod:
    """One pod of the job, owned by it."""

    name: str
    uid: str
    worker: int
    incarnation: int
    phase: str
    """Pending, Running, Succeeded, Failed or Unknown."""
    is_deleting: bool
    created_at: float
    """Seconds since 1970."""
    ip: str | None = None
    """None until the node has given one."""
    node: str | None = None
    """None until scheduled."""
    image: str | None = None
    """Of the trainer container, as it was asked for; None: nobody said."""
    image_id: str | None = None
    """The same as its node resolved it, with its digest; None: it has not yet."""
    running_since: float | None = None
    """When the trainer container started (seconds since 1970); None: it has not, or nobody said."""
    finished_at: float | None = None
    """When the trainer container ended (seconds since 1970); None: it has not, or nobody said."""
    waiting: str | None = None
    """Why it does not run yet, `Reason: message`; None when nothing is wrong."""
    is_unprepared: bool = False
    """Its node says that it has not got its volumes and its network yet."""
    exit_code: int | None = None
    """Of the trainer container; None while it runs."""
    exit_reason: str | None = None
    """OOMKilled, Error, Completed, or the pod's own reason such as Evicted or NodeLost."""
    final: State | None = None
    """The supervisor's last words, from the termination message; None when there are none."""
    last_lines: tuple[str, ...] = ()
    """The end of the container's log, oldest first; empty while it runs, after success, and when there is `final`."""
    group: str | None = None
    """Name of the pod group in which Kueue admits it; None: it waits in no queue."""
    is_last_of_group: bool = False
    """It says that no pod of its group is followed by another."""
    stopped_by_queue: str | None = None
    """Why Kueue takes it away, in Kueue's words; None: Kueue does not."""


@dataclass(frozen=True, slots=True)
class ObservedSupervisor:
    """The newest answer of one pod's supervisor."""

    state: State
    fetched_at: float
    """Seconds since 1970."""
    busy_seconds: tuple[float, ...] = ()
    """The newest values of the metric of that name in this attempt, newest last, at most six."""


@dataclass(frozen=True, slots=True)
class Observed:
    """All of it."""

    job: ObservedJob
    pods: tuple[ObservedPod, ...]
    """Every pod owned by this job (by uid), sorted by worker, then incarnation."""
    supervisors: Mapping[str, ObservedSupervisor]
    """By pod uid; a pod that never answered is missing."""
    token: str
    """Bearer token that this job's supervisors accept; the same at every look."""
    silent_since: Mapping[str, float] = field(default_factory=dict)
    """By pod uid: when the first of the newest unanswered requests to its supervisor was made (seconds since 1970). A
    pod that was never asked, or did answer one of the newest two requests, is missing: an operator that slept or has
    just started must not take its own silence for a pod's, nor one lost packet for a lost node."""
    refusing: frozenset[str] = frozenset()
    """Uids of those silent pods whose supervisors are there, but do not know the token of their job."""
    is_chaos_allowed: bool = False
    """Both the operator and the job's namespace allow injected faults."""
    roots_in_use: tuple[str, ...] | None = None
    """Roots of the job's checkpoints that InferenceServices serve, sorted; None: not all services were seen yet."""
    gang_schedulers: frozenset[str] = frozenset()
    """Those keys of workers.gang whose PodGroups the API server serves."""
    settings: "OperatorSettings" = field(default_factory=lambda: OperatorSettings())


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """What the installation decides for all jobs."""

    flax_image: str = "capstan/flax-trainer:latest"
    deepspeed_image: str = "capstan/deepspeed-trainer:latest"
    serve_image: str = "capstan/serve-replica:latest"
    bench_image: str = "capstan/bench:latest"
    operator_url: str | None = None
    """Base URL under which pods reach the operator's hint endpoint; None: pods are polled only."""
    progress_seconds: float = 5.0
    """Least time between two status writes that only carry progress."""
    allow_chaos: bool = False
    """Faults of `spec.chaos` are injected in namespaces that allow it too."""
    allow_host_path: bool = False
    """Pods may see folders of their nodes, as a store or by a podPatch."""
    host_paths: frozenset[str] = frozenset()
    """Those that they may see all the same; not of the installation, but of the one object that has them already."""
