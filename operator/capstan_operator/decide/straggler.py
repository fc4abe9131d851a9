"""A rank that needs much longer for its share than the others. It is named, not restarted: a slow rank still trains."""

from statistics import median

from capstan_operator.api.meta import TrainingJobCondition
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.conditions import find, put
from capstan_operator.decide.reasons import Reason
from capstan_operator.decide.situation import Situation, Worker

SLOW_RATIO, EVEN_RATIO = 1.5, 1.25
"""Busy time over the median of the others' above which a rank is slow, and below which it is not any more."""
LEAST_SECONDS = 0.02
"""A difference below this is noise, whatever the ratio."""
LOOKS = 6
"""So many looks in a row must agree: what a busy machine does to one rank for a few seconds is no news."""


def put_straggling(situation: Situation, status: TrainingJobStatus) -> TrainingJobStatus:
    """Condition Straggling: there only once a rank was slow. Its message stays while it is about the same pod."""
    kind = TrainingJobCondition.STRAGGLING
    known = find(status, kind)
    slowest = _slowest(situation)
    is_slow = slowest is not None and all(ratio > SLOW_RATIO for ratio in slowest[1])
    if slowest is not None and is_slow:
        worker, ratios = slowest
        place = _place(worker)
        if known is not None and known.status == "True" and place in known.message:
            return status
        message = (
            f"rank {situation.rank_of(worker)} ({place}) is busy for {min(ratios):.1f} times as long per step as the "
            f"median of the others, who wait for it"
        )
        return put(situation, status, kind, True, Reason.RANK_IS_SLOW, message)
    if known is None or known.status != "True":
        return status
    is_gone = bool(situation.members) and not any(_place(worker) in known.message for worker in situation.members)
    is_even = slowest is not None and all(ratio < EVEN_RATIO for ratio in slowest[1])
    if is_gone or is_even:
        return put(situation, status, kind, False, Reason.RANKS_ARE_EVEN, "no rank is much slower than the others")
    return status


def _slowest(situation: Situation) -> tuple[Worker, list[float]] | None:
    """The rank that was busy longest at the newest look, and its busy time over the median of the others' at each of
    the newest looks; None: not all ranks of the attempt have told theirs so often yet."""
    members, looks = situation.members, []
    for worker in members:
        supervisor = situation.observed.supervisors.get(worker.pod.uid) if worker.pod else None
        if supervisor is None or supervisor.state.fence != situation.status.fence:
            return None
        looks.append(supervisor.busy_seconds)
    if len(members) < 2 or any(len(busy) < LOOKS for busy in looks):
        return None
    slowest = max(range(len(members)), key=lambda rank: looks[rank][-1])
    ratios = []
    for look in range(LOOKS):
        others = median(busy[look] for rank, busy in enumerate(looks) if rank != slowest)
        own = looks[slowest][look]
        ratios.append(own / others if others > 0 and own - others >= LEAST_SECONDS else 1.0)
    return members[slowest], ratios


def _place(worker: Worker) -> str:
    pod = worker.pod
    return f"pod {pod.name} on node {pod.node}" if pod else f"worker {worker.index}"
