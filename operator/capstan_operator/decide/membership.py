"""Attempts: who is in, under which number, and who has yet to be told."""

import hashlib
from collections.abc import Iterable

from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.chaos import injections_for
from capstan_operator.decide.progress import without_rates
from capstan_operator.decide.ranks import write_ranks
from capstan_operator.decide.remedies import skips_of
from capstan_operator.decide.situation import LEAVING, Situation, Worker, word_of
from capstan_operator.decide.times import rfc3339
from capstan_operator.decide.types import MembershipPush
from capstan_runtime.contract.env import SUPERVISOR_PORT, coordinator_port
from capstan_runtime.contract.run_config import Membership, RunConfig
from capstan_runtime.contract.state import State

DIGEST_LENGTH = 12
PUSH_AGAIN_SECONDS = 2.0
"""A membership that a supervisor has not shown to have taken is pushed again after so long."""


def members_digest(pod_uids: Iterable[str]) -> str:
    """Twelve hex digits over the sorted uids: names the set of pods of an attempt."""
    return hashlib.sha256("\n".join(sorted(pod_uids)).encode()).hexdigest()[:DIGEST_LENGTH]


def has_members(situation: Situation) -> bool:
    """The pods that the members have now are exactly those of the current attempt."""
    pods = [worker.pod for worker in situation.members]
    return all(pods) and situation.status.members == members_digest(pod.uid for pod in pods if pod)


def form_attempt(situation: Situation, members: tuple[Worker, ...]) -> TrainingJobStatus:
    """Status with a new attempt of `members`, in the order of their ranks. It is written before any pod hears of it, so
    that an operator that dies in between can neither forget the attempt nor give its number to another."""
    status = situation.status
    words = (word_of(pod, situation.observed) for pod in situation.observed.pods)
    known = [word.fence for word in words if word]
    started = rfc3339(situation.now)
    return status.model_copy(
        update={
            "fence": max(status.fence, *known) + 1,
            "world": len(members),
            "next_world": None,
            "ranks": write_ranks(worker.index for worker in members),
            "members": members_digest(worker.pod.uid for worker in members if worker.pod),
            "started_at": status.started_at or started,
            "attempt_started_at": started,
            "step": _first_step(status),
            "steps": status.steps or situation.blueprint.spec.training.steps,
            "metrics": without_rates(status.metrics),
            "resumed_from": None,
            "base_step": status.checkpoint.step if status.checkpoint else None,
            "floor_step": _floor_step(status),
            "floor_root": _floor_root(status),
        }
    )


def plan_pushes(situation: Situation) -> tuple[MembershipPush, ...]:
    """The memberships that supervisors of the current attempt have not shown to have taken.

    All of a fence's memberships are made of what status said when the attempt began: a supervisor takes a second one
    only if it differs in nothing but the wish to leave, the checkpoints to keep and the trace to make.
    """
    status, members = situation.status, situation.members
    if not members or not has_members(situation):
        return ()
    addresses = [_bracketed(worker.pod.ip) for worker in members if worker.pod and worker.pod.ip]
    if len(addresses) < len(members):
        return ()
    coordinator = f"{addresses[0]}:{coordinator_port(status.fence)}"
    # An attempt that was begun by an operator that did not note the floor has the floor of now.
    floor_step = _floor_step(status) if status.ranks is None else status.floor_step
    keep_roots, profile_request = _keep_roots(situation), _profile_request(situation)
    peers = tuple(f"{address}:{SUPERVISOR_PORT}" for address in addresses)
    return tuple(
        MembershipPush(
            pod_name=worker.pod.name,
            pod_uid=worker.pod.uid,
            ip=worker.pod.ip,
            membership=Membership(
                fence=status.fence,
                rank=rank,
                world=len(members),
                coordinator=coordinator,
                floor_step=floor_step or 0,
                floor_root=status.floor_root,
                micro_splits=status.micro_splits or 1,
                skips=skips_of(status),
                peers=peers,
                chaos=injections_for(situation, worker),
                leave_at_checkpoint=status.next_world is not None,
                keep_roots=keep_roots,
                profile_request=profile_request,
            ),
        )
        for rank, worker in enumerate(members)
        if worker.pod and worker.pod.ip and worker.is_up and _is_to_be_told(worker, rank, situation)
    )


def _keep_roots(situation: Situation) -> tuple[str, ...] | None:
    """The checkpoints that are served. As long as an operator that has just begun has not seen who serves what, those
    that any pod was told of before; None: none was."""
    observed = situation.observed
    if observed.roots_in_use is not None:
        return observed.roots_in_use
    words = [word for pod in observed.pods if (word := word_of(pod, observed))]
    told = [word.keep_roots for word in words if word.keep_roots is not None]
    return tuple(sorted({root for roots in told for root in roots})) if told else None


def _is_to_be_told(worker: Worker, rank: int, situation: Situation) -> bool:
    status, answer = situation.status, worker.answer
    if answer is None or answer.fence > status.fence:
        return False
    if answer.fence < status.fence:
        return True
    is_running = answer.exit is None and answer.phase not in LEAVING
    must_leave = status.next_world is not None and not answer.leave_at_checkpoint
    is_of_rank_0 = _has_other_roots(answer, situation) or _must_trace(answer, situation)
    return is_running and (must_leave or (rank == 0 and is_of_rank_0))


def _has_other_roots(answer: State, situation: Situation) -> bool:
    """Rank 0 alone removes checkpoints. A supervisor that is too old to keep any is not told, as it never shows it."""
    served = situation.observed.roots_in_use
    return served is not None and answer.keep_roots is not None and answer.keep_roots != served


def _profile_request(situation: Situation) -> str | None:
    """What is to be traced and has not been yet; None: nothing is."""
    profiler = situation.blueprint.run.callbacks.profiler if isinstance(situation.blueprint.run, RunConfig) else None
    asked, made = situation.observed.job.profile_request, situation.status.profile
    is_new = made is None or made.request != asked
    return asked if profiler is not None and profiler.annotation is not None and is_new else None


def _must_trace(answer: State, situation: Situation) -> bool:
    """Rank 0 alone traces, and knows of a request once it was told; a trace that was made is no news."""
    asked = _profile_request(situation)
    return asked is not None and answer.profile_request != asked


def _first_step(status: TrainingJobStatus) -> int | None:
    """What comes next is what the newest checkpoint holds; a run that resumes lower says so in `resumedFrom`. If none
    verified so far, nothing starts from 0: the last step that was made stays."""
    if status.checkpoint is not None:
        return status.checkpoint.step
    return status.step if status.quarantined else 0


def _floor_step(status: TrainingJobStatus) -> int | None:
    """Step of the newest checkpoint ever seen committed; None: none. One that was passed over since counts too: the run
    must not take the store for an empty one and start over."""
    known = [entry.step for entry in status.quarantined]
    if status.checkpoint:
        known.append(status.checkpoint.step)
    return max(known, default=None)


def _floor_root(status: TrainingJobStatus) -> str | None:
    """Root of the checkpoint at the floor; None: there is none, or it did not verify."""
    newest = status.checkpoint
    return newest.root if newest is not None and newest.step == _floor_step(status) else None


def _bracketed(ip: str) -> str:
    """An IPv6 address needs brackets before a port."""
    return f"[{ip}]" if ":" in ip else ip
