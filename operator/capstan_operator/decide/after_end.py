"""After a job has succeeded or failed: what is left is cleared away in time. What may start again is `revival.py`'s."""

from capstan_operator.api.meta import TrainingJobCondition
from capstan_operator.build.children import secret_name
from capstan_operator.decide.conditions import is_true
from capstan_operator.decide.placement import delete_pods, is_live
from capstan_operator.decide.times import rfc3339, seconds_after
from capstan_operator.decide.types import Decision
from capstan_operator.observe import Observed

LEAVE_SECONDS = 60.0
"""How long the supervisors of a job that succeeded may take to end by themselves."""


def decide_after_end(observed: Observed, now: float) -> Decision:
    """Live pods go after a grace, all pods and the Secret after the TTL; the job stays as a tombstone.

    Needs no valid spec: it may have been edited into anything since.
    """
    job = observed.job
    status = job.status.model_copy(update={"observed_generation": job.generation})
    if status.cleaned_up_at is not None:
        return Decision(status=status)
    age = seconds_after(status.finished_at, now)
    ttl = _ttl_seconds(observed)
    if ttl is not None and age >= ttl:
        return Decision(
            status=status.model_copy(update={"cleaned_up_at": rfc3339(now)}),
            delete=delete_pods(list(observed.pods)),
            delete_secrets=(secret_name(job.name),),
        )
    live = [pod for pod in observed.pods if is_live(pod)]
    grace = LEAVE_SECONDS if is_true(status, TrainingJobCondition.SUCCEEDED) else 0.0
    waits = [] if ttl is None else [ttl - age]
    if live and age < grace:
        waits.append(grace - age)
        live = []
    return Decision(status=status, delete=delete_pods(live), requeue_after=min(waits, default=None))


def _ttl_seconds(observed: Observed) -> int | None:
    ttl = observed.job.spec.get("ttlSecondsAfterFinished")
    return ttl if isinstance(ttl, int) and not isinstance(ttl, bool) and ttl >= 0 else None
