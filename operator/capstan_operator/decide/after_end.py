"""After a job has succeeded or failed: what is left is cleared away in time. What may start again is `revival.py`'s."""

from collections.abc import Iterator

from capstan_operator.api.meta import TrainingJobCondition
from capstan_operator.build.children import secret_name
from capstan_operator.decide.conditions import is_true
from capstan_operator.decide.membership import PUSH_AGAIN_SECONDS
from capstan_operator.decide.placement import delete_pods, is_live
from capstan_operator.decide.queueing import end_groups
from capstan_operator.decide.situation import ranks_of, word_of
from capstan_operator.decide.times import rfc3339, seconds_after
from capstan_operator.decide.types import Decision, MembershipPush
from capstan_operator.observe import Observed, ObservedPod
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import Phase

LEAVE_SECONDS = 60.0
"""How long the supervisors of a job that has ended may take to end too."""


def decide_after_end(observed: Observed, now: float) -> Decision:
    """Live pods go, all pods and the Secret after the TTL; the job stays as a tombstone.

    After success the pods that took part end by themselves; one that came too late has nobody to end it, and may keep a
    GPU. After a failure those whose trainer has ended are told to end, and stay for their logs; those whose trainer
    still runs are deleted. What has not ended after a grace is deleted. Needs no valid spec: it may have been edited
    into anything since.
    """
    job = observed.job
    status = job.status.model_copy(update={"observed_generation": job.generation})
    if status.cleaned_up_at is not None:
        return Decision(status=status, end_groups=end_groups(observed, status))
    age = seconds_after(status.finished_at, now)
    ttl = _ttl_seconds(observed)
    if ttl is not None and age >= ttl:
        return Decision(
            status=status.model_copy(update={"cleaned_up_at": rfc3339(now)}),
            end_groups=end_groups(observed, status),
            delete=delete_pods(list(observed.pods)),
            delete_secrets=(secret_name(job.name),),
        )
    live = [pod for pod in observed.pods if is_live(pod) and not pod.is_deleting]
    has_succeeded = is_true(status, TrainingJobCondition.SUCCEEDED)
    ends = _took_part if has_succeeded else _has_ended_trainer
    ending = [pod for pod in live if ends(pod, observed)] if age < LEAVE_SECONDS else []
    waits = [] if ttl is None else [ttl - age]
    waits += [LEAVE_SECONDS - age] if ending else []
    pushes = () if has_succeeded else tuple(push for pod in ending for push in _that_it_is_over(pod, observed))
    waits += [PUSH_AGAIN_SECONDS] if pushes else []
    return Decision(
        status=status,
        end_groups=end_groups(observed, status),
        delete=delete_pods(pod for pod in live if pod not in ending),
        pushes=pushes,
        requeue_after=min(waits, default=None),
    )


def _took_part(pod: ObservedPod, observed: Observed) -> bool:
    """In the attempt with which the job succeeded, as far as known; a program without a supervisor has no attempts."""
    status, word = observed.job.status, word_of(pod, observed)
    if status.fence == 0:
        return True
    return pod.worker in ranks_of(status) if word is None else word.fence == status.fence


def _has_ended_trainer(pod: ObservedPod, observed: Observed) -> bool:
    """Its supervisor has said that its trainer ended in the attempt with which the job failed. If it is silent since,
    it may have ended as well."""
    word, failure = word_of(pod, observed), observed.job.status.failure
    if word is None or word.exit is None or failure is None:
        return False
    return word.exit.fence == word.fence == failure.fence == observed.job.status.fence


def _that_it_is_over(pod: ObservedPod, observed: Observed) -> Iterator[MembershipPush]:
    """What ends the pod, unless its supervisor has shown to have heard it."""
    word = word_of(pod, observed)
    if word is None or word.phase is not Phase.EXITED or word.rank is None or word.world is None or pod.ip is None:
        return
    over = Membership(fence=word.fence, rank=word.rank, world=word.world, coordinator="", is_over=True)
    yield MembershipPush(pod.name, pod.uid, pod.ip, over)


def _ttl_seconds(observed: Observed) -> int | None:
    ttl = observed.job.spec.get("ttlSecondsAfterFinished")
    return ttl if isinstance(ttl, int) and not isinstance(ttl, bool) and ttl >= 0 else None
