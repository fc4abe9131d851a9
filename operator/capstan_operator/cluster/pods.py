"""From a pod on the wire to the few facts a decision needs. Typed decoding skips the other nine tenths."""

import sys
from datetime import datetime
from functools import lru_cache
from ipaddress import IPv4Address, ip_address

import msgspec
from pydantic import ValidationError

from capstan_operator.api.meta import GROUP, LABEL_INCARNATION, LABEL_WORKER
from capstan_operator.api.queueing import ANNOTATION_RETRIABLE, LABEL_GROUP, STOPPED_BY_QUEUE
from capstan_operator.observe import ObservedPod
from capstan_runtime.contract.state import State

TRAINER_CONTAINER = "trainer"
MAX_TERMINATION_BYTES = 12 * 1024
"""What Kubernetes keeps of all termination messages of a pod together."""
MAX_LINES = 10
MAX_LINE_LENGTH = 200
_BROADCAST = IPv4Address("255.255.255.255")
PREPARED = "PodReadyToStartContainers"
_STARTING = frozenset({"", "ContainerCreating", "PodInitializing"})
"""Reasons of waiting that mean: nothing is wrong."""


class OwnerReference(msgspec.Struct, gc=False, rename="camel"):
    uid: str
    kind: str = ""
    name: str = ""
    api_version: str = ""
    controller: bool | None = None


class Metadata(msgspec.Struct, gc=False, rename="camel"):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[OwnerReference] | None = None

    def controller(self) -> OwnerReference | None:
        """The one owner that manages this object; None: nobody does."""
        return next((owner for owner in self.owner_references or () if owner.controller), None)


class Waiting(msgspec.Struct, gc=False):
    reason: str = ""
    message: str = ""


class Terminated(msgspec.Struct, gc=False, rename="camel"):
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    finished_at: str | None = None


class Running(msgspec.Struct, gc=False, rename="camel"):
    started_at: str | None = None


class ContainerState(msgspec.Struct, gc=False):
    waiting: Waiting | None = None
    running: Running | None = None
    terminated: Terminated | None = None


class ContainerStatus(msgspec.Struct, gc=False, rename="camel"):
    name: str
    state: ContainerState | None = None
    last_state: ContainerState | None = None
    restart_count: int = 0
    image_id: str | None = msgspec.field(default=None, name="imageID")


class PodCondition(msgspec.Struct, gc=False):
    type: str
    status: str = ""
    reason: str | None = None
    message: str | None = None


class PodStatus(msgspec.Struct, gc=False, frozen=True, rename="camel"):
    phase: str = "Pending"
    reason: str | None = None
    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    host_ip: str = msgspec.field(default="", name="hostIP")
    conditions: list[PodCondition] | None = None
    init_container_statuses: list[ContainerStatus] | None = None
    container_statuses: list[ContainerStatus] | None = None

    def address(self) -> str | None:
        """Where the pod is asked; None: nowhere yet, or nowhere that a pod can be."""
        return pod_address(self.pod_ip, self.host_ip) if self.pod_ip else None


class HttpGet(msgspec.Struct, gc=False):
    scheme: str = "HTTP"


class Probe(msgspec.Struct, gc=False, rename="camel"):
    http_get: HttpGet | None = None


class Container(msgspec.Struct, gc=False, rename="camel"):
    name: str = ""
    image: str = ""
    readiness_probe: Probe | None = None


class PodSpec(msgspec.Struct, gc=False, frozen=True, rename="camel"):
    node_name: str | None = None
    containers: list[Container] | None = None


class Pod(msgspec.Struct, gc=False):
    """What is decoded of a pod."""

    metadata: Metadata
    kind: str = "Pod"
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


decode_pod = msgspec.json.Decoder(Pod).decode


def owning_job(metadata: Metadata) -> OwnerReference | None:
    """The TrainingJob that manages this object; None: another kind, or nobody."""
    owner = metadata.controller()
    if owner is None or owner.kind != "TrainingJob" or not owner.api_version.startswith(f"{GROUP}/"):
        return None
    return owner


def worker_of(metadata: Metadata) -> tuple[int, int] | None:
    """(worker, incarnation) from the labels; None: the operator did not make this pod."""
    labels = metadata.labels or {}
    worker, incarnation = labels.get(LABEL_WORKER, ""), labels.get(LABEL_INCARNATION, "")
    if not (worker.isdecimal() and incarnation.isdecimal()):
        return None
    return int(worker), int(incarnation)


def observe_pod(pod: Pod, worker: int, incarnation: int) -> tuple[ObservedPod, str | None]:
    """The facts, and what is wrong with the termination message (None: nothing)."""
    status = pod.status
    trainer = next((c for c in status.container_statuses or () if c.name == TRAINER_CONTAINER), None)
    state = trainer.state if trainer is not None else None
    terminated = state.terminated if state is not None else None
    running = state.running if state is not None else None
    final, flaw = read_final(terminated.message) if terminated is not None else (None, None)
    observed = ObservedPod(
        name=pod.metadata.name,
        uid=pod.metadata.uid,
        worker=worker,
        incarnation=incarnation,
        phase=sys.intern(status.phase),
        is_deleting=pod.metadata.deletion_timestamp is not None,
        created_at=seconds_of(pod.metadata.creation_timestamp),
        ip=status.address(),
        node=sys.intern(pod.spec.node_name) if pod.spec.node_name else None,
        image=next((sys.intern(c.image) for c in pod.spec.containers or () if c.name == TRAINER_CONTAINER), "") or None,
        image_id=resolved_image(trainer),
        running_since=seconds_of(running.started_at) if running is not None and running.started_at else None,
        finished_at=seconds_of(terminated.finished_at) if terminated is not None and terminated.finished_at else None,
        waiting=waiting(status),
        is_unprepared=_is_unprepared(status),
        exit_code=terminated.exit_code if terminated is not None else None,
        exit_reason=exit_reason(status, terminated),
        final=final,
        last_lines=read_lines(terminated.message) if terminated is not None and final is None else (),
        group=_interned((pod.metadata.labels or {}).get(LABEL_GROUP)),
        is_last_of_group=(pod.metadata.annotations or {}).get(ANNOTATION_RETRIABLE) == "false",
        stopped_by_queue=_stopped_by_queue(status),
    )
    return observed, flaw


def resolved_image(container: ContainerStatus | None) -> str | None:
    """What its node made of the image that was asked for, with the digest; None: it has not said."""
    told = (container.image_id if container is not None else None) or ""
    return _interned(told.partition("://")[2] or told)  # some runtimes put docker-pullable:// before it


@lru_cache(maxsize=16384)
def pod_address(ip: str, host_ip: str) -> str | None:
    """`ip`, if a pod of a node at `host_ip` may have it; else None.

    The status of a pod is written by its node, and what it says gets a request with a token. So a node that lies must
    not lead the operator to itself, to the metadata service of a cloud (link-local) or to a whole network. Pods at
    loopback addresses are those of a node that is this machine.
    """
    try:
        address = ip_address(ip)
    except ValueError:
        return None
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_unspecified or address.is_multicast or address.is_link_local or address == _BROADCAST:
        return None
    # Clusters that have run out of private addresses give pods those of 240.0.0.0/4 (class E). Of IPv6's reserved ones,
    # which nobody gives to pods, 64:ff9b::/96 leads to any IPv4 address behind a NAT64.
    if address.version == 6 and address.is_reserved:
        return None
    return None if address.is_loopback and not _is_loopback(host_ip) else ip


def _is_loopback(host_ip: str) -> bool:
    try:
        return ip_address(host_ip).is_loopback
    except ValueError:
        return False


def _interned(text: str | None) -> str | None:
    return sys.intern(text) if text else None


def _is_unprepared(status: PodStatus) -> bool:
    """What it mounts is not there yet: a kubelet says no more, but in events. Those before 1.29 do not say that."""
    conditions = status.conditions or ()
    return status.phase == "Pending" and any(one.type == PREPARED and one.status == "False" for one in conditions)


def _stopped_by_queue(status: PodStatus) -> str | None:
    """`Reason: message` of the condition that Kueue sets on what it takes away; None: it does not."""
    found = (one for one in status.conditions or () if one.type == STOPPED_BY_QUEUE and one.status == "True")
    return next((f"{one.reason}: {one.message}" if one.message else one.reason or one.type for one in found), None)


def read_final(message: str) -> tuple[State | None, str | None]:
    """The supervisor's last words, or why they cannot be read. Neither, if the message is empty or the end of the log,
    which the kubelet puts in the place of words that were never written."""
    if not message.startswith('{"pod"'):
        return None, None
    if len(message) > MAX_TERMINATION_BYTES:
        return None, f"{len(message)} characters are too many"
    try:
        return read_state(message), None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return None, f"{'.'.join(map(str, first['loc'])) or 'document'}: {first['msg']}"


def read_lines(message: str) -> tuple[str, ...]:
    """The last lines of a message that is not a State, without empty ones and terminal codes."""
    lines = ("".join(filter(str.isprintable, line)).strip() for line in message[-MAX_TERMINATION_BYTES:].splitlines())
    return tuple(line[:MAX_LINE_LENGTH] for line in lines if line)[-MAX_LINES:]


def read_state(document: str | bytes) -> State:
    """A supervisor's report. Fields that only a newer runtime knows are passed over: pods may be ahead of us.

    Raises pydantic's ValidationError.
    """
    return State.model_validate_json(document, by_alias=True, by_name=False, extra="ignore")


def seconds_of(timestamp: str | None) -> float:
    """Seconds since 1970 of an RFC 3339 time; 0 when there is none."""
    return datetime.fromisoformat(timestamp).timestamp() if timestamp else 0.0


def exit_reason(status: PodStatus, terminated: Terminated | None) -> str | None:
    """Why a container ended: OOMKilled, Error, Evicted; None: nothing says.

    The pod's own reason is nearer to the cause than the container's: an evicted pod's container says Error.
    """
    if status.reason:
        return status.reason
    for condition in status.conditions or ():
        if condition.type == "DisruptionTarget" and condition.status == "True" and condition.reason:
            return condition.reason
    return (terminated.reason or None) if terminated is not None else None


def waiting(status: PodStatus) -> str | None:
    """Why a pod does not run yet, `Reason: message`; None when nothing is wrong."""
    for container in (*(status.init_container_statuses or ()), *(status.container_statuses or ())):
        found = container.state.waiting if container.state is not None else None
        if found is not None and found.reason not in _STARTING:
            return f"{found.reason}: {found.message}" if found.message else found.reason
    for condition in status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False" and condition.reason:
            return f"{condition.reason}: {condition.message}" if condition.message else condition.reason
    return None
