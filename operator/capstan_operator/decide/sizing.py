"""How large the next world is, who is in it, and why it is not larger.

A worker that is gone is not waited for: the largest valid world of those that are ready goes on, and it grows at a
checkpoint when more are ready.
"""

from collections.abc import Iterable

from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.placement import needs_pod
from capstan_operator.decide.situation import Situation, Worker, replicas_as_started
from capstan_operator.decide.waiting import is_held_up, trouble_of

GATHER_SECONDS = 30.0
"""How long an attempt of new pods waits for more of them after the first was ready: pods created together come up
within seconds of each other, and an attempt that begins too small is stopped again at its first checkpoint."""
STABLE_SECONDS = 5.0
"""A worker must have run so long before an attempt is stopped for its sake: many that fail, fail at their start."""
WARM_SECONDS = 120.0
"""The same while its process still imports: those who train need not wait for that. One that never gets through it is
taken in all the same."""


def choose_members(situation: Situation) -> tuple[tuple[Worker, ...] | None, float | None]:
    """(workers of the next attempt in the order of their ranks, or None while there is none to begin; seconds until
    that may change by itself, or None)."""
    usable = _usable(situation)
    world = _largest(situation.worlds, len(usable))
    if world is None:
        return None, None
    if world < situation.wanted:
        wait = _seconds_to_gather(situation, usable)
        if wait is not None and wait > 0:
            return None, wait
    # Those who were in the last attempt hold its state in memory.
    ranks = set(situation.ranks)
    preferred = sorted(usable, key=lambda worker: (worker.index not in ranks, worker.index))[:world]
    return tuple(sorted(preferred, key=lambda worker: worker.index)), None


def choose_next_world(situation: Situation) -> tuple[int | None, float | None]:
    """(size of the world for which the attempt that is on should stop at its next checkpoint, or None; seconds until
    that may change by itself, or None). What was asked for once stays: it cannot be taken back."""
    status, members = situation.status, situation.members
    if status.next_world is not None:
        return status.next_world, None
    indices = {worker.index for worker in members}
    idle = [worker for worker in _usable(situation) if worker.index not in indices]
    young = [_seconds_to_settle(worker, situation) for worker in idle]
    wait = min((left for left in young if left > 0), default=None)
    staying = [worker for worker in members if worker.index < situation.wanted and worker.is_up]
    stable = [worker for worker, left in zip(idle, young, strict=True) if left <= 0]
    world = _largest(situation.worlds, len(staying) + len(stable))
    if world is None:
        return None, wait
    if world > len(members):
        return world, None
    # The spec was changed since: it goes on as it is until the change can be followed without losing more than it asks.
    is_outdated = len(members) not in situation.worlds or len(staying) < len([w for w in members if w.is_up])
    if is_outdated and world in (len(members), situation.wanted):
        return world, None
    return None, wait


def describe_size(situation: Situation, status: TrainingJobStatus) -> TrainingJobStatus:
    """`status` with the sizes the world may have, and why it is not the largest."""
    return status.model_copy(
        update={
            "valid_worlds": list(situation.worlds),
            "size_message": _size_message(situation) if status.members is not None else None,
        }
    )


def unreachable_size(situation: Situation) -> str | None:
    """What of workers.min and max the run can never have, however many workers are ready, and what to do, in one line;
    None: nothing. Only a later spec can ask for such a size: the virtual ranks stay those of the start."""
    spec, wanted = situation.blueprint.spec, situation.wanted
    largest, least, virtual_ranks = spec.workers.max, spec.min_workers, situation.status.virtual_ranks
    if largest == wanted:
        return None
    both = least > wanted
    asked = f"workers.min: {least} and max: {largest}" if both else f"workers.max: {largest}"
    if virtual_ranks is None:
        return f"{asked} cannot be followed: nobody noted the virtualRanks of the run, which keeps its size of {wanted}"
    each = replicas_as_started(situation.status, situation.blueprint).workers
    fitting = (n * each for n in range(1, virtual_ranks + 1) if virtual_ranks % n == 0)
    larger = next((size for size in fitting if size > largest), None)
    # A spec whose min does not divide its max is refused, unless it sets the virtual ranks itself.
    ends = "min and max" if any(size % least for size in (wanted, larger or wanted)) else "max"
    instead = (
        f", or start a new job with training.virtualRanks {largest // each}" if larger is None else f" or to {larger}"
    )
    return (
        f"{asked}{_over(each)} {'do' if both else 'does'} not divide virtualRanks {virtual_ranks}, which the run keeps "
        f"from its start, so it has {_workers(wanted)} at most; set {ends} to {wanted}{instead}"
    )


def idle_stages(situation: Situation) -> str | None:
    """What a pipeline with fewer micro-steps than stages costs, and what to do, in one line; None: there is none. Said
    at the start, for the virtual ranks stay."""
    spec = situation.blueprint.spec
    if spec.parallelism is None or spec.parallelism.pipeline == 1:
        return None
    stages, virtual_ranks = spec.parallelism.pipeline, situation.status.virtual_ranks or spec.virtual_ranks
    replicas = max(1, situation.worlds[-1] * max(1, spec.workers.gpus) // spec.parallelism.devices)
    steps = max(1, virtual_ranks // replicas) * (situation.status.micro_splits or 1)
    if steps >= stages:
        return None
    return (
        f"pipeline {stages} with {steps} micro-step{'s' if steps > 1 else ''} a replica keeps {steps} of "
        f"{stages + steps - 1} turns of each stage busy; in a new job set training.virtualRanks to "
        f"{stages * replicas} or more"
    )


def count_idle(situation: Situation) -> int:
    """Workers that are ready, but not in the attempt that is on."""
    ranks = set(situation.ranks)
    return 0 if situation.status.members is None else sum(w.index not in ranks for w in _usable(situation))


def _usable(situation: Situation) -> list[Worker]:
    """Wanted workers that can be given a place, and whose pods are to stay."""
    return [
        worker
        for worker in situation.workers
        if worker.index < situation.wanted and worker.is_ready and not needs_pod(worker, situation)
    ]


def _largest(worlds: Iterable[int], workers: int) -> int | None:
    return max((world for world in worlds if world <= workers), default=None)


def _seconds_to_gather(situation: Situation, usable: list[Worker]) -> float | None:
    """How long to wait for more workers than `usable`; None: not at all."""
    present = {worker.index for worker in usable}
    missing = [worker for worker in situation.workers if worker.index not in present]
    doubtful = [_seconds_of_doubt(worker, situation) for worker in missing]
    doubts = [wait for wait in doubtful if wait is not None]
    if doubts:
        return min(doubts)
    # Who has survived goes on at once. Pods that are all new are waited for together: one that went on alone would be
    # stopped again for the next at its first checkpoint.
    if any(worker.answer is not None and worker.answer.fence > 0 for worker in usable):
        return None
    if all(is_held_up(worker) for worker in missing):
        return None
    return GATHER_SECONDS - max(_age(worker, situation) for worker in usable)


def _seconds_of_doubt(worker: Worker, situation: Situation) -> float | None:
    """How long until a member of the last attempt, whose pod runs but does not answer, is lost or not; None: no doubt.
    One lost answer must not cost it its place."""
    if situation.rank_of(worker) is None or worker.silent_seconds is None or not worker.is_up or worker.answer is None:
        return None
    wait = situation.silence_limit(worker) - worker.silent_seconds
    return wait if wait > 0 else None


def _seconds_to_settle(worker: Worker, situation: Situation) -> float:
    """How long until an attempt may be stopped for the sake of `worker`; 0 or less: now."""
    is_cold = worker.answer is not None and worker.answer.is_warm is False
    return (WARM_SECONDS if is_cold else STABLE_SECONDS) - _age(worker, situation)


def _age(worker: Worker, situation: Situation) -> float:
    """Seconds since its container started."""
    if worker.pod is None:
        return 0.0
    since = worker.pod.created_at if worker.pod.running_since is None else worker.pod.running_since
    return max(0.0, situation.now - since)


def _size_message(situation: Situation) -> str | None:
    world, wanted, spec = len(situation.members), situation.wanted, situation.blueprint.spec
    if situation.status.next_world is not None:
        return f"{_change(situation, situation.status.next_world)} at the next checkpoint"
    if world >= wanted:
        return unreachable_size(situation)
    ranks = set(situation.ranks)
    missing = [worker for worker in situation.workers if worker.index not in ranks and worker.index < wanted]
    ready = world + count_idle(situation)
    reasons = [trouble for worker in missing if not worker.is_ready and (trouble := trouble_of(worker))]
    each = replicas_as_started(situation.status, situation.blueprint).workers
    message = f"{world} of {wanted} workers"
    if ready > world and _largest(situation.worlds, ready) == world:
        message = (
            f"{ready} workers are ready, but only {_either(situation.worlds)}{_over(each)} divide "
            f"virtualRanks {situation.status.virtual_ranks or spec.virtual_ranks}"
        )
    return f"{message}: {reasons[0]}" if reasons else message


def _change(situation: Situation, world: int) -> str:
    """`workers 2 and 3 join`, or what else is to happen."""
    ranks = set(situation.ranks)
    joining = [str(worker.index) for worker in _usable(situation) if worker.index not in ranks][: world - len(ranks)]
    if world < len(ranks):
        return f"the world changes to {_workers(world)}"
    if not joining or len(joining) < world - len(ranks):
        return "the world is formed anew"
    return f"worker {joining[0]} joins" if len(joining) == 1 else f"workers {_both(joining)} join"


def _over(per_replica: int) -> str:
    return f" in replicas of {per_replica}" if per_replica > 1 else ""


def _workers(number: int) -> str:
    return f"{number} worker{'s' if number > 1 else ''}"


def _both(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _either(worlds: tuple[int, ...]) -> str:
    return _both([str(world) for world in worlds])
