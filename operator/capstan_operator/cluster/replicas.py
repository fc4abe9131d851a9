"""What an InferenceService is made of, from the wire to the few facts a decision needs."""

from dataclasses import dataclass

import msgspec
from pydantic import ValidationError

from capstan_operator.api.meta import LABEL_REVISION, LABEL_SERVICE
from capstan_operator.build.registry_pod import RESOLVER
from capstan_operator.build.serving_pod import SERVER
from capstan_operator.cluster.pods import (
    MAX_TERMINATION_BYTES,
    ContainerStatus,
    Metadata,
    Pod,
    PodCondition,
    exit_reason,
    resolved_image,
    seconds_of,
    waiting,
)
from capstan_operator.observe_serving import ObservedDeployment, ObservedReplica, ObservedResolver, ObservedRoute
from capstan_runtime.contract.registry import Resolved

MAX_MESSAGE = 500


class DeploymentSpec(msgspec.Struct, gc=False):
    replicas: int | None = None


class DeploymentStatus(msgspec.Struct, gc=False):
    conditions: list[PodCondition] | None = None


class Deployment(msgspec.Struct, gc=False):
    """What is decoded of a Deployment."""

    metadata: Metadata
    spec: DeploymentSpec = msgspec.field(default_factory=DeploymentSpec)
    status: DeploymentStatus = msgspec.field(default_factory=DeploymentStatus)


class ServiceSpec(msgspec.Struct, gc=False, rename="camel"):
    selector: dict[str, str] = {}
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")


class Service(msgspec.Struct, gc=False):
    """What is decoded of a Service."""

    metadata: Metadata
    spec: ServiceSpec = msgspec.field(default_factory=ServiceSpec)


class DisruptionBudget(msgspec.Struct, gc=False):
    """What is decoded of a PodDisruptionBudget."""

    metadata: Metadata


decode_disruption_budget = msgspec.json.Decoder(DisruptionBudget).decode
decode_deployment = msgspec.json.Decoder(Deployment).decode
decode_service = msgspec.json.Decoder(Service).decode


def observe_deployment(deployment: Deployment) -> ObservedDeployment:
    replicas = deployment.spec.replicas
    conditions = deployment.status.conditions or ()
    return ObservedDeployment(
        deployment.metadata.name,
        deployment.metadata.uid,
        1 if replicas is None else replicas,  # the API server fills in what is left out
        failure=next((why for one in conditions if (why := _why_no_pods(one))), None),
    )


def _why_no_pods(condition: PodCondition) -> str | None:
    """What a Deployment says of pods that it cannot make; None: of something else."""
    if (condition.type, condition.status) != ("ReplicaFailure", "True"):
        return None
    return (condition.message or condition.reason or "ReplicaFailure")[:MAX_MESSAGE]


def observe_route(service: Service) -> ObservedRoute:
    return ObservedRoute(
        service.metadata.uid, service.spec.selector.get(LABEL_REVISION), service.spec.cluster_ip or None
    )


def served_by(metadata: Metadata) -> tuple[str, str] | None:
    """(InferenceService, revision) by the labels; None: no revision's Deployment made this pod. A copy of one, as
    `kubectl debug` makes them, has its labels, and may even get requests, but nothing can be made of it."""
    labels, owner = metadata.labels or {}, metadata.controller()
    name, revision = labels.get(LABEL_SERVICE), labels.get(LABEL_REVISION)
    if not name or not revision or owner is None or owner.kind != "ReplicaSet":
        return None
    return (name, revision) if owner.name.startswith(f"{revision}-") else None


@dataclass(frozen=True, slots=True)
class Address:
    """Where a pod's numbers are asked for."""

    ip: str
    is_tls: bool


def address_of(pod: Pod) -> Address | None:
    """None: it has none yet. It speaks TLS if the kubelet asks it over TLS whether it is ready."""
    ip = pod.status.address()
    if ip is None:
        return None
    probe = next((one.readiness_probe for one in pod.spec.containers or () if one.name == SERVER), None)
    is_tls = probe is not None and probe.http_get is not None and probe.http_get.scheme == "HTTPS"
    return Address(ip, is_tls)


def observe_replica(pod: Pod, revision: str) -> ObservedReplica:
    """The facts about one pod. How its container last ended is told until it has become ready again."""
    status = pod.status
    server = next((one for one in status.container_statuses or () if one.name == SERVER), None)
    is_ready = any(one.type == "Ready" and one.status == "True" for one in status.conditions or ())
    states = [] if server is None else [server.state, server.last_state]
    ended = next((state.terminated for state in states if state is not None and state.terminated is not None), None)
    if is_ready:
        ended = None
    return ObservedReplica(
        name=pod.metadata.name,
        uid=pod.metadata.uid,
        revision=revision,
        is_ready=is_ready,
        is_deleting=pod.metadata.deletion_timestamp is not None,
        restarts=server.restart_count if server is not None else 0,
        exit_code=ended.exit_code if ended is not None else None,
        exit_reason=exit_reason(status, ended) if ended is not None or status.reason else None,
        exit_message=_one_line(ended.message) if ended is not None else None,
        waiting=waiting(status),
        image_id=resolved_image(server),
        is_prepared=not (pod.spec.node_name and status.phase == "Pending" and not _has_started(server)),
    )


def observe_resolver(pod: Pod) -> ObservedResolver:
    """The facts about a pod that asks a registry."""
    status = pod.status
    container = next((one for one in status.container_statuses or () if one.name == RESOLVER), None)
    states = [] if container is None else [container.state, container.last_state]
    ended = next((state.terminated for state in states if state is not None and state.terminated is not None), None)
    answer = read_answer(ended.message) if ended is not None and ended.exit_code == 0 else None
    last_words = (_one_line(ended.message) if ended is not None else None) or exit_reason(status, ended)
    return ObservedResolver(
        name=pod.metadata.name,
        uid=pod.metadata.uid,
        created_at=seconds_of(pod.metadata.creation_timestamp) or 0.0,
        is_deleting=pod.metadata.deletion_timestamp is not None,
        is_over=status.phase in ("Succeeded", "Failed"),
        answer=answer,
        problem=last_words if (ended is not None or status.reason) and answer is None else None,
        waiting=waiting(status),
    )


def read_answer(message: str) -> Resolved | None:
    """The last words of a pod that asks a registry; None: they are none that this operator can read. What only a newer
    runtime knows is passed over."""
    try:
        return Resolved.model_validate_json(
            message[:MAX_TERMINATION_BYTES], by_alias=True, by_name=False, extra="ignore"
        )
    except ValidationError:
        return None


def _has_started(container: ContainerStatus | None) -> bool:
    """Whether it was created at least once."""
    if container is None or container.state is None:
        return False
    return container.state.running is not None or container.state.terminated is not None or container.restart_count > 0


def _one_line(message: str) -> str | None:
    """The last line that says anything: what the pod wrote, or the end of its log."""
    lines = ("".join(filter(str.isprintable, line)).strip() for line in message.splitlines())
    last = next((line for line in reversed(list(lines)) if line), None)
    return last[:MAX_MESSAGE] if last else None
