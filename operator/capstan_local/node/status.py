"""PodStatus from what the containers are. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Condition = dict[str, Any]


def timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


@dataclass
class ContainerState:
    """One container as the status shows it. `state` and `last_state` are ContainerState objects of the API."""

    name: str
    image: str
    state: dict[str, Any] = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last_state: dict[str, Any] = field(default_factory=dict)
    restart_count: int = 0
    container_id: str = ""
    ready: bool = False
    started: bool = False
    is_sidecar: bool = False
    """An init container that goes on running beside the main ones (restartPolicy Always)."""

    @property
    def terminated(self) -> Mapping[str, Any] | None:
        """The end of the current run; None while it waits or runs."""
        return self.state.get("terminated")

    @property
    def is_running(self) -> bool:
        return "running" in self.state

    @property
    def has_succeeded(self) -> bool:
        return self.terminated is not None and self.terminated["exitCode"] == 0

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "image": self.image,
            "imageID": f"local://{self.image}" if self.container_id else "",
            "containerID": self.container_id,
            "state": self.state,
            "lastState": self.last_state,
            "restartCount": self.restart_count,
            "ready": self.ready,
            "started": self.started,
        }

    @property
    def is_initialized(self) -> bool:
        """For init containers: whether the next one may start."""
        if self.is_sidecar:
            return self.started or self.terminated is not None or bool(self.last_state)
        return self.has_succeeded

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "ContainerState":
        return cls(
            document["name"],
            document.get("image", ""),
            dict(document.get("state") or {"waiting": {"reason": "ContainerCreating"}}),
            dict(document.get("lastState") or {}),
            document.get("restartCount", 0),
            document.get("containerID", ""),
            document.get("ready", False),
            document.get("started", False) or False,
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why the node itself ended a pod; it makes the phase Failed."""

    reason: str
    message: str


def restarts(policy: str, exit_code: int) -> bool:
    """Whether a container that ended with `exit_code` is started again under the pod's restartPolicy."""
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)


def decide_phase(
    policy: str, init: Sequence[ContainerState], main: Sequence[ContainerState], *, is_stopped: bool
) -> str:
    """Pending, Running, Succeeded or Failed, by the rules of the kubelet.

    `is_stopped`: nothing will be started again, because the pod is being deleted or its node stops.
    """
    policy = "Never" if is_stopped else policy
    for state in init:
        if not state.is_initialized:
            failed = state.terminated is not None and not restarts(policy, state.terminated["exitCode"])
            return "Failed" if failed else "Pending"
    if any("waiting" in state.state and not state.last_state for state in main):
        return "Pending"
    if any(state.terminated is None or restarts(policy, state.terminated["exitCode"]) for state in main):
        return "Running"
    if any(state.is_running for state in init):  # sidecars, which end after the main containers
        return "Running"
    return "Succeeded" if all(state.has_succeeded for state in main) else "Failed"


def build_status(
    pod: Mapping[str, Any],
    init: Sequence[ContainerState],
    main: Sequence[ContainerState],
    *,
    pod_ip: str | None,
    host_ip: str,
    start_time: str,
    now: float,
    verdict: Verdict | None = None,
    is_stopped: bool = False,
    is_prepared: bool = True,
) -> dict[str, Any]:
    """The whole status this node is responsible for. Conditions of others are left alone: see `status_patch`.

    `is_prepared`: the pod has its address and its volumes.
    """
    phase = decide_phase(pod["spec"].get("restartPolicy", "Always"), init, main, is_stopped=is_stopped)
    if verdict is not None:
        # A pod has not failed while something of it still runs: who replaces it would run beside it.
        phase = "Running" if any(state.is_running for state in (*init, *main)) else "Failed"
    status: dict[str, Any] = {
        "phase": phase,
        "conditions": _conditions(pod, init, main, phase, now, is_prepared),
        "hostIP": host_ip,
        "startTime": start_time,
        "containerStatuses": [state.document() for state in main],
    }
    if init:
        status["initContainerStatuses"] = [state.document() for state in init]
    if pod_ip is not None:
        status |= {"podIP": pod_ip, "podIPs": [{"ip": pod_ip}]}
    if verdict is not None:
        status |= {"reason": verdict.reason, "message": verdict.message}
    return status


def _conditions(
    pod: Mapping[str, Any],
    init: Sequence[ContainerState],
    main: Sequence[ContainerState],
    phase: str,
    now: float,
    is_prepared: bool,
) -> list[Condition]:
    ended = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(phase)
    incomplete = [state.name for state in init if not state.is_initialized]
    unready = [state.name for state in main if not state.ready]
    existing = {condition["type"]: condition for condition in (pod.get("status") or {}).get("conditions") or []}
    gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates") or []]
    shut = [gate for gate in gates if existing.get(gate, {}).get("status") != "True"]

    initialized: tuple[str, str] | None = None
    if incomplete and ended != "PodCompleted":
        initialized = ("ContainersNotInitialized", f"containers with incomplete status: [{' '.join(incomplete)}]")
    unready_reason: tuple[str, str] | None = None
    if ended:
        unready_reason = (ended, "")
    elif unready:
        unready_reason = ("ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]")
    pod_reason = unready_reason
    if pod_reason is None and shut:
        pod_reason = (
            "ReadinessGatesNotReady",
            f'corresponding condition of pod readiness gate "{shut[0]}" is not True',
        )
    return [
        _condition(existing, kind, reason, now)
        for kind, reason in (
            ("PodReadyToStartContainers", None if is_prepared and not ended else ("", "")),
            ("Initialized", initialized),
            ("Ready", pod_reason),
            ("ContainersReady", unready_reason),
            ("PodScheduled", None),
        )
    ]


def _condition(
    existing: Mapping[str, Mapping[str, Any]], kind: str, problem: tuple[str, str] | None, now: float
) -> Condition:
    """True when there is no problem. The time of the last transition is kept while the status stays the same."""
    status = "True" if problem is None else "False"
    before = existing.get(kind, {})
    since = before.get("lastTransitionTime") if before.get("status") == status else None
    condition = {"type": kind, "status": status, "lastProbeTime": None, "lastTransitionTime": since or timestamp(now)}
    if problem is not None:
        condition |= {key: word for key, word in zip(("reason", "message"), problem, strict=True) if word}
    return condition


def status_patch(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The strategic merge patch of `status` that turns `current` into `wanted`; empty when nothing would change."""
    patch = {name: value for name, value in wanted.items() if name != "conditions" and current.get(name) != value}
    before = {condition["type"]: condition for condition in current.get("conditions") or []}
    changed = []
    for condition in wanted["conditions"]:
        old = before.get(condition["type"], {})
        if {**old, "lastProbeTime": None} == condition:
            continue
        vanished = {name: None for name in old if name not in condition}
        changed.append({**condition, **vanished})
    if changed:
        patch["conditions"] = changed
    return patch
