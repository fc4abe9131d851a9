"""The READY, STATUS and RESTARTS of a pod, as kubectl has them."""

from datetime import datetime
from typing import Any

from capstan_local.schema.durations import age

Object = dict[str, Any]


def ready(pod: Object) -> str:
    """Ready containers of all, sidecars included: `1/2`."""
    sidecars = _sidecars(pod)
    total = len(pod["spec"].get("containers") or ()) + len(sidecars)
    status = pod.get("status") or {}
    count = sum(_is_running(container) for container in status.get("containerStatuses") or ())
    count += sum(
        bool(container.get("ready")) and bool(container.get("started"))
        for container in status.get("initContainerStatuses") or ()
        if container["name"] in sidecars
    )
    return f"{count}/{total}"


def status(pod: Object) -> str:
    """The phase, or what is more telling: `Init:0/1`, `CrashLoopBackOff`, `OOMKilled`, `Terminating`."""
    state = pod.get("status") or {}
    reason = state.get("reason") or state.get("phase") or ""
    conditions = {item["type"]: item for item in state.get("conditions") or ()}
    if conditions.get("PodScheduled", {}).get("reason") == "SchedulingGated":
        reason = "SchedulingGated"
    initializing = _init_reason(pod)
    if initializing is not None and conditions.get("Initialized", {}).get("status") != "True":
        reason = initializing
    else:
        reason = _container_reason(state.get("containerStatuses") or [], reason)
        if reason == "Completed" and any(_is_running(item) for item in state.get("containerStatuses") or ()):
            reason = "Running" if conditions.get("Ready", {}).get("status") == "True" else "NotReady"
    if "deletionTimestamp" in pod["metadata"]:
        if state.get("reason") == "NodeLost":
            return "Unknown"
        if state.get("phase") not in ("Succeeded", "Failed"):
            return "Terminating"
    return str(reason)


def restarts(pod: Object, now: datetime) -> str:
    """How often containers restarted, and when last: `3 (5m ago)`."""
    state = pod.get("status") or {}
    containers = state.get("containerStatuses") or []
    if _init_reason(pod) is not None or not containers:
        containers = [*(state.get("initContainerStatuses") or []), *containers]
    count = sum(container.get("restartCount") or 0 for container in containers)
    ends = [(container.get("lastState") or {}).get("terminated", {}).get("finishedAt") for container in containers]
    last = max((end for end in ends if end), default=None)
    return f"{count} ({age(last, now)} ago)" if count and last else str(count)


def readiness_gates(pod: Object) -> str:
    """Gates that are open of all; <none> without any."""
    gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates") or ()]
    if not gates:
        return "<none>"
    conditions = (pod.get("status") or {}).get("conditions") or ()
    true = {item["type"] for item in conditions if item.get("status") == "True"}
    return f"{sum(gate in true for gate in gates)}/{len(gates)}"


def _sidecars(pod: Object) -> set[str]:
    return {item["name"] for item in pod["spec"].get("initContainers") or () if item.get("restartPolicy") == "Always"}


def _is_running(container: Object) -> bool:
    return bool(container.get("ready")) and "running" in (container.get("state") or {})


def _init_reason(pod: Object) -> str | None:
    """Why the init containers are not done; None when they are."""
    statuses = (pod.get("status") or {}).get("initContainerStatuses") or ()
    sidecars = _sidecars(pod)
    for index, container in enumerate(statuses):
        state = container.get("state") or {}
        terminated, waiting = state.get("terminated"), state.get("waiting")
        if terminated is not None and not terminated.get("exitCode"):
            continue
        if container["name"] in sidecars and container.get("started"):
            continue
        if terminated is not None:
            return f"Init:{_end(terminated)}"
        if waiting is not None and waiting.get("reason") not in (None, "", "PodInitializing"):
            return f"Init:{waiting['reason']}"
        return f"Init:{index}/{len(pod['spec'].get('initContainers') or ())}"
    return None


def _container_reason(containers: list[Object], reason: str) -> str:
    """The reason of the first container that has one to give, else `reason`."""
    for container in containers:
        state = container.get("state") or {}
        if (state.get("waiting") or {}).get("reason"):
            return str(state["waiting"]["reason"])
        if state.get("terminated") is not None:
            return _end(state["terminated"])
    return reason


def _end(terminated: Object) -> str:
    if terminated.get("reason"):
        return str(terminated["reason"])
    signal = terminated.get("signal")
    return f"Signal:{signal}" if signal else f"ExitCode:{terminated.get('exitCode', 0)}"
