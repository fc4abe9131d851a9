"""Names of the API group and its labels, and the condition shape all kinds share."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from capstan_runtime.contract.base import Record

GROUP = "capstan.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
FIELD_MANAGER = "capstan-operator"
CATEGORY = "capstan"

LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "capstan"
LABEL_JOB = f"{GROUP}/job"
"""Name of the TrainingJob a child belongs to."""
LABEL_WORKER = f"{GROUP}/worker"
"""Index of the worker, 0 to world - 1; its rank in every membership."""
LABEL_INCARNATION = f"{GROUP}/incarnation"
"""How many pods this worker had before this one."""
LABEL_SERVICE = f"{GROUP}/service"
"""Name of the InferenceService a child belongs to."""
LABEL_REVISION = f"{GROUP}/revision"
"""Name of the revision a child belongs to."""
LABEL_REGISTRY = f"{GROUP}/registry"
"""Of the pod that asks a registry, the name of the InferenceService that it asks for."""
LABEL_BENCHMARK = f"{GROUP}/benchmark"
"""Name of the Benchmark a child belongs to."""
LABEL_TRIAL = f"{GROUP}/trial"
"""Which of its trials it is, or `report`."""
LABEL_CHAOS = f"{GROUP}/chaos"
"""On a namespace: with the value CHAOS_ALLOWED its jobs may ask for faults (`spec.chaos`)."""
CHAOS_ALLOWED = "allowed"
ANNOTATION_PROFILE = f"{GROUP}/profile"
"""On a TrainingJob whose `callbacks.profiler` says `annotation`: each new value asks for a trace of some steps."""
LONGEST_PROFILE_REQUEST = 63
"""Characters of that value that count."""


class Condition(Record):
    """One `metav1.Condition`. `reason` is a documented enum member; `message` never holds a clock."""

    type: Annotated[str, Field(description="What is asked, in CamelCase.")]
    status: Annotated[Literal["True", "False", "Unknown"], Field(description="True, False or Unknown.")]
    reason: Annotated[str, Field(description="Why, in one CamelCase word.")]
    message: Annotated[str, Field(description="Why, in one sentence for people.")] = ""
    last_transition_time: Annotated[str, Field(description="When status last changed (RFC 3339).")]
    observed_generation: Annotated[int | None, Field(description="Generation of the spec this was computed from.")] = (
        None
    )


class TrainingJobCondition(StrEnum):
    """Condition types of a TrainingJob."""

    ACCEPTED = "Accepted"
    """The spec is valid and the operator acts on it."""
    RUNNING = "Running"
    """All workers of the current attempt are up and in the world."""
    PROGRESSING = "Progressing"
    """Optimizer steps are being made, or the next thing needed for that is under way."""
    CHECKPOINT_VERIFIED = "CheckpointVerified"
    """The newest committed checkpoint's bytes match its digests."""
    STRAGGLING = "Straggling"
    """One rank needs much longer for its share than the others, who wait for it at every step."""
    CHAOS_REFUSED = "ChaosRefused"
    """spec.chaos asks for faults that the operator or the namespace does not allow; none is injected."""
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class InferenceServiceCondition(StrEnum):
    """Condition types of an InferenceService."""

    ACCEPTED = "Accepted"
    """The spec is valid and the operator acts on it."""
    SERVING = "Serving"
    """The stable address answers: at least one ready pod is behind it."""
    ROUTED = "Routed"
    """A Gateway leads requests to the service. Absent without spec.gateway."""
    UP_TO_DATE = "UpToDate"
    """All traffic goes to the revision that the spec asks for."""
    PROGRESSING = "Progressing"
    """A new revision is on its way to all traffic."""
    ROLLED_BACK = "RolledBack"
    """The revision that the spec asks for was given up; the one before it serves."""
    SCALING_LIMITED = "ScalingLimited"
    """Requests ask for more pods than spec.autoscaling allows."""


class BenchmarkCondition(StrEnum):
    """Condition types of a Benchmark."""

    ACCEPTED = "Accepted"
    """The spec is valid and the operator acts on it."""
    PROGRESSING = "Progressing"
    """Runs are made, or the next thing needed for that is under way."""
    SUCCEEDED = "Succeeded"
    """All was measured and reported. What the figures say is the verdict's business."""
    FAILED = "Failed"
    NOT_REGRESSED = "NotRegressed"
    """True: Passed or Improved; False: Regressed; Unknown: Inconclusive. Absent without a baseline."""


class Phase(StrEnum):
    """The one word of the PHASE column: a projection of the conditions for people, never an input."""

    INVALID = "Invalid"
    PENDING = "Pending"
    STARTING = "Starting"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
