"""What a decision is made of."""

from dataclasses import dataclass
from typing import Any, Literal

from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_runtime.contract.run_config import Membership

Manifest = dict[str, Any]
"""A Kubernetes object as JSON."""


@dataclass(frozen=True, slots=True)
class PodDeletion:
    """Delete exactly this pod: the uid is sent as a precondition."""

    name: str
    uid: str
    grace_seconds: int | None = None
    """None: the pod's own terminationGracePeriodSeconds."""


@dataclass(frozen=True, slots=True)
class GroupEnd:
    """Say on this pod that its group is over with the pods it has. The uid is sent as a precondition."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class EventNote:
    """An event on the job, sent only after the status write succeeded."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class MembershipPush:
    """`PUT /membership` to one supervisor that has not shown to have taken it."""

    pod_name: str
    pod_uid: str
    ip: str
    membership: Membership


@dataclass(frozen=True, slots=True)
class Decision:
    """All that follows from one look. Applied in this order: apply, create, end_groups, delete, status, pushes, events.

    A failure stops the rest; everything is computed again from what is then seen.
    """

    status: TrainingJobStatus
    """The whole desired status. Written only if it differs from the observed one."""
    apply: tuple[Manifest, ...] = ()
    """Children to be server-side applied (the job's Secret)."""
    create: tuple[Manifest, ...] = ()
    """Pods to create; 409 means it exists: ours is adopted, a stranger's is an error."""
    end_groups: tuple[GroupEnd, ...] = ()
    """One pod of each group that gives its quota back once its pods have ended."""
    delete: tuple[PodDeletion, ...] = ()
    delete_secrets: tuple[str, ...] = ()
    """Names of Secrets in the job's namespace to delete, with `delete`; one that is gone already is no error."""
    pushes: tuple[MembershipPush, ...] = ()
    events: tuple[EventNote, ...] = ()
    requeue_after: float | None = None
    """Seconds until the next look even if nothing wakes us; 0.0: at once; None: only a wake-up."""
    is_repair: bool = False
    """The decision mends a broken attempt: it takes the fast lane."""
