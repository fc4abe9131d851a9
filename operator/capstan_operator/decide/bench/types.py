"""What a decision about a Benchmark is made of."""

from dataclasses import dataclass
from typing import Literal

from capstan_operator.api.benchmark_status import BenchmarkStatus
from capstan_operator.decide.types import EventNote, Manifest


@dataclass(frozen=True, slots=True)
class BenchDeletion:
    """Delete exactly this child: the uid is sent as a precondition."""

    kind: Literal["Pod", "TrainingJob", "InferenceService"]
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class BenchDecision:
    """All that follows from one look. Applied in this order: delete, create, status, events.

    A failure stops the rest; everything is computed again from what is then seen.
    """

    status: BenchmarkStatus
    """The whole desired status. Written only if it differs from the observed one."""
    delete: tuple[BenchDeletion, ...] = ()
    create: tuple[Manifest, ...] = ()
    """TrainingJobs, InferenceServices and pods; 409 means it exists: ours is adopted, a stranger's is an error."""
    events: tuple[EventNote, ...] = ()
    requeue_after: float | None = None
    """Seconds until the next look even if nothing wakes us; 0.0: at once; None: only a wake-up."""
