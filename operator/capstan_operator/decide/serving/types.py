"""What a decision about an InferenceService is made of."""

from dataclasses import dataclass
from typing import Literal

from capstan_operator.api.inference_service_status import InferenceServiceStatus
from capstan_operator.decide.serving.reasons import ServingReason
from capstan_operator.decide.types import EventNote, Manifest, PodDeletion


@dataclass(frozen=True, slots=True)
class NoModel:
    """There is nothing to serve yet, and why."""

    reason: ServingReason
    message: str


@dataclass(frozen=True, slots=True)
class Scale:
    """Make a Deployment have so many pods. The uid is sent as a precondition."""

    deployment: str
    uid: str
    replicas: int


@dataclass(frozen=True, slots=True)
class ChildDeletion:
    """Delete a child of this name, if it is this service's; one that is gone already is no error."""

    kind: Literal["Deployment", "Service", "Secret", "HTTPRoute", "PodDisruptionBudget"]
    name: str


@dataclass(frozen=True, slots=True)
class ServingDecision:
    """All that follows from one look. Applied in this order: apply, scale, delete, status, events.

    A failure stops the rest; everything is computed again from what is then seen.
    """

    status: InferenceServiceStatus
    """The whole desired status. Written only if it differs from the observed one."""
    apply: tuple[Manifest, ...] = ()
    """Children to be server-side applied, in this order: the Service that answers are compared by, whenever it is to
    lead elsewhere; of a new revision Secret, Service and Deployment; the stable Service, then the HTTPRoute,
    whenever it is to lead elsewhere; the PodDisruptionBudget, whenever it is missing. With KubeRay: of a new revision
    its Secret, then the RayService, whenever it is to be another."""
    scale: tuple[Scale, ...] = ()
    delete: tuple[ChildDeletion, ...] = ()
    create: tuple[Manifest, ...] = ()
    """The pod that asks a registry, whenever there is something to ask and it is missing. With `delete`."""
    delete_pods: tuple[PodDeletion, ...] = ()
    """Such pods whose answer is of no use any more. With `delete`."""
    events: tuple[EventNote, ...] = ()
    requeue_after: float | None = None
    """Seconds until the next look even if nothing wakes us; 0.0: at once; None: only a wake-up."""
