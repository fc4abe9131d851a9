"""Attempts: who is in, under which number, and who has yet to be told."""

import hashlib
from collections.abc import Iterable

from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.progress import without_rates
from capstan_operator.decide.situation import Situation, word_of
from capstan_operator.decide.times import rfc3339
from capstan_operator.decide.types import MembershipPush
from capstan_runtime.contract.env import coordinator_port
from capstan_runtime.contract.run_config import Membership

DIGEST_LENGTH = 12
PUSH_AGAIN_SECONDS = 2.0
"""A membership that a supervisor has not shown it took is pushed again after so long."""


def members_digest(pod_uids: Iterable[str]) -> str:
    """Twelve hex digits over the sorted uids: names the set of pods of an attempt."""
    return hashlib.sha256("\n".join(sorted(pod_uids)).encode()).hexdigest()[:DIGEST_LENGTH]


def has_members(situation: Situation) -> bool:
    """The pods that exist now are exactly those of the current attempt."""
    pods = [worker.pod for worker in situation.workers]
    return all(pods) and situation.status.members == members_digest(pod.uid for pod in pods if pod)


def form_attempt(situation: Situation) -> TrainingJobStatus:
    """Status with a new attempt of the present pods. It is written before any pod hears of it, so that an operator
    that dies in between can neither forget the attempt nor give its number to another."""
    status = situation.status
    words = (word_of(pod, situation.observed) for pod in situation.observed.pods)
    known = [word.fence for word in words if word]
    checkpoint_step = status.checkpoint.step if status.checkpoint else 0
    started = rfc3339(situation.now)
    return status.model_copy(
        update={
            "fence": max(status.fence, *known) + 1,
            "world": situation.world,
            "members": members_digest(worker.pod.uid for worker in situation.workers if worker.pod),
            "started_at": status.started_at or started,
            "attempt_started_at": started,
            # What comes next is what the newest checkpoint holds; a run that resumes lower says so in resumedFrom.
            "step": checkpoint_step,
            "steps": status.steps or situation.blueprint.spec.training.steps,
            "metrics": without_rates(status.metrics),
            "resumed_from": None,
        }
    )


def plan_pushes(situation: Situation) -> tuple[MembershipPush, ...]:
    """The memberships that supervisors of the current attempt have not taken yet."""
    status = situation.status
    first = situation.workers[0].pod
    if first is None or first.ip is None or not has_members(situation):
        return ()
    coordinator = f"{_bracketed(first.ip)}:{coordinator_port(status.fence)}"
    floor_step = _floor_step(status)
    return tuple(
        MembershipPush(
            pod_name=worker.pod.name,
            pod_uid=worker.pod.uid,
            ip=worker.pod.ip,
            membership=Membership(
                fence=status.fence,
                rank=worker.index,
                world=situation.world,
                coordinator=coordinator,
                floor_step=floor_step,
            ),
        )
        for worker in situation.workers
        if worker.pod and worker.pod.ip and worker.is_up and worker.answer and worker.answer.fence < status.fence
    )


def _floor_step(status: TrainingJobStatus) -> int:
    """Step of the newest checkpoint ever seen committed. One that was passed over since counts too: the run must not
    take the store for an empty one and start over."""
    known = [entry.step for entry in status.quarantined]
    if status.checkpoint:
        known.append(status.checkpoint.step)
    return max(known, default=0)


def _bracketed(ip: str) -> str:
    """An IPv6 address needs brackets before a port."""
    return f"[{ip}]" if ":" in ip else ip
