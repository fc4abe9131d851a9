"""What is to be said of a Job with these pods, and how many pods it should have. Pure."""

from dataclasses import dataclass
from typing import Any

from capstan_local.client import Object
from capstan_local.controllers.shared import is_active, is_deleting, ready_since
from capstan_local.node.status import parse_timestamp, timestamp

INDEX = "batch.kubernetes.io/job-completion-index"
DEFAULT_BACKOFF_LIMIT = 6


@dataclass(frozen=True, slots=True)
class Judgement:
    status: dict[str, Any]
    """All of the status but startTime."""
    is_final: bool
    wanted: int
    """How many pods should be active now."""
    look_again: float | None
    """Seconds until the deadline passes; None without one."""


def judge(job: Object, pods: list[Object], now: float) -> Judgement:
    """The state of a Job. A finished one stays as it is."""
    spec, before = job["spec"], job.get("status") or {}
    conditions = list(before.get("conditions") or [])
    active = [pod for pod in pods if is_active(pod)]
    indexed = spec.get("completionMode") == "Indexed"
    done = completed_indexes(job, pods)
    # Pods may be deleted after they ended: what was counted once stays counted.
    succeeded = len(done) if indexed else max(before.get("succeeded") or 0, _count(pods, "Succeeded"))
    failed = max(before.get("failed") or 0, _count(pods, "Failed"))
    is_final = any(item["type"] in ("Complete", "Failed") and item["status"] == "True" for item in conditions)
    completion_time = before.get("completionTime")
    look_again = None
    if not is_final:
        failure = _failure(job, pods, failed, now)
        if failure is not None:
            conditions.append(_condition("Failed", now, *failure))
            is_final = True
        elif _is_complete(spec, succeeded, active):
            conditions.append(_condition("Complete", now))
            completion_time, is_final = timestamp(now), True
        else:
            conditions = _suspension(spec, conditions, now)
            look_again = _seconds_left(job, now)
    status: dict[str, Any] = {
        "active": 0 if is_final else len(active),
        "ready": 0 if is_final else sum(ready_since(pod) is not None for pod in active),
        "succeeded": succeeded,
        "failed": failed,
        "conditions": conditions or None,
        "completionTime": completion_time,
    }
    status = {name: (value or None) for name, value in status.items()}
    if indexed:
        status["completedIndexes"] = format_indexes(done) or None
    return Judgement(status, is_final, 0 if spec.get("suspend") else _wanted(spec, succeeded, len(active)), look_again)


def _wanted(spec: Object, succeeded: int, active: int) -> int:
    parallelism = int(spec.get("parallelism", 1))
    if spec.get("completions") is None:  # a work queue: once one has succeeded no new ones start
        return min(active, parallelism) if succeeded else parallelism
    return max(0, min(parallelism, int(spec["completions"]) - succeeded))


def _is_complete(spec: Object, succeeded: int, active: list[Object]) -> bool:
    if spec.get("completions") is None:
        return succeeded > 0 and not active
    return bool(succeeded >= spec["completions"])


def _failure(job: Object, pods: list[Object], failed: int, now: float) -> tuple[str, str] | None:
    spec = job["spec"]
    limit = spec.get("backoffLimit", DEFAULT_BACKOFF_LIMIT)
    restarts = 0
    if spec["template"]["spec"].get("restartPolicy") == "OnFailure":
        restarts = sum(
            item.get("restartCount", 0)
            for pod in pods
            if not is_deleting(pod)
            for item in (pod.get("status") or {}).get("containerStatuses") or []
        )
    if failed > limit or (restarts and restarts >= limit):
        return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    left = _seconds_left(job, now)
    if left is not None and left <= 0:
        return "DeadlineExceeded", "Job was active longer than specified deadline"
    return None


def _seconds_left(job: Object, now: float) -> float | None:
    deadline, started = job["spec"].get("activeDeadlineSeconds"), (job.get("status") or {}).get("startTime")
    if deadline is None or job["spec"].get("suspend"):
        return None
    return float(deadline) if not started else parse_timestamp(started) + deadline - now


def _suspension(spec: Object, conditions: list[Object], now: float) -> list[Object]:
    is_suspended = bool(spec.get("suspend"))
    shown = next((item for item in conditions if item["type"] == "Suspended"), None)
    if shown is None and not is_suspended:
        return conditions
    status = "True" if is_suspended else "False"
    if shown is not None and shown["status"] == status:
        return conditions
    reason = ("JobSuspended", "Job suspended") if is_suspended else ("JobResumed", "Job resumed")
    others = [item for item in conditions if item["type"] != "Suspended"]
    return [*others, _condition("Suspended", now, *reason, status=status)]


def completed_indexes(job: Object, pods: list[Object]) -> set[int]:
    """Indexes of which a pod has succeeded, those noted on the status included."""
    noted = parse_indexes((job.get("status") or {}).get("completedIndexes") or "")
    seen = {index_of(pod) for pod in pods if (pod.get("status") or {}).get("phase") == "Succeeded"}
    return noted | {index for index in seen if index is not None}


def index_of(pod: Object) -> int | None:
    text = (pod["metadata"].get("annotations") or {}).get(INDEX)
    return None if text is None else int(text)


def format_indexes(indexes: set[int]) -> str:
    """Runs of numbers, as Kubernetes writes them.

    >>> format_indexes({1, 3, 4, 5, 7})
    '1,3-5,7'
    """
    parts: list[list[int]] = []
    for index in sorted(indexes):
        if parts and index == parts[-1][-1] + 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    # Two neighbours are written apart, three and more as a run.
    texts = [f"{part[0]}-{part[-1]}" if len(part) > 2 else ",".join(map(str, part)) for part in parts]
    return ",".join(texts)


def parse_indexes(text: str) -> set[int]:
    """The reverse of `format_indexes`."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _count(pods: list[Object], phase: str) -> int:
    return sum((pod.get("status") or {}).get("phase") == phase for pod in pods)


def _condition(kind: str, now: float, reason: str = "", message: str = "", *, status: str = "True") -> Object:
    condition = {"type": kind, "status": status, "lastProbeTime": timestamp(now), "lastTransitionTime": timestamp(now)}
    return {**condition, **({"reason": reason, "message": message} if reason else {})}
