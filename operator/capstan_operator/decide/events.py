"""What happened, as events on the job: the difference between two statuses, told once."""

from collections.abc import Iterator

from capstan_operator.api.meta import TrainingJobCondition
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.conditions import find, is_true
from capstan_operator.decide.failure import restart_sentence
from capstan_operator.decide.lifecycle import end_of
from capstan_operator.decide.plan import Plan
from capstan_operator.decide.progress import short_root, summary
from capstan_operator.decide.provenance import PREEMPTED, completed_since
from capstan_operator.decide.reasons import Reason
from capstan_operator.decide.situation import Situation
from capstan_operator.decide.types import EventNote
from capstan_runtime.contract.compression import ModelFigures


def tell(situation: Situation, plan: Plan, old: TrainingJobStatus, new: TrainingJobStatus) -> tuple[EventNote, ...]:
    """The events that the step from `old` to `new` is worth, in the order in which things happened."""
    tales = (
        _accepted(old, new),
        _chaos(old, new),
        _quarantined(old, new),
        _noted(old, new),
        _profiled(old, new),
        _registered(old, new),
        _compressed(old, new),
        _ended(situation, old, new),
        _resizing(old, new),
        _started(situation, plan, old, new),
        _recovered(old, new),
    )
    return tuple(note for tale in tales for note in tale)


def _accepted(old: TrainingJobStatus, new: TrainingJobStatus) -> Iterator[EventNote]:
    before, after = find(old, TrainingJobCondition.ACCEPTED), find(new, TrainingJobCondition.ACCEPTED)
    if after is None:
        return
    if after.reason == Reason.PARTLY_APPLIED:
        if before is None or (before.reason, before.message) != (after.reason, after.message):
            yield EventNote("Warning", after.reason, after.message)
    elif before is None or before.status != "True":
        yield EventNote("Normal", "Accepted", after.message)


def _quarantined(old: TrainingJobStatus, new: TrainingJobStatus) -> Iterator[EventNote]:
    known = {(entry.step, entry.root) for entry in old.quarantined}
    for entry in new.quarantined:
        if (entry.step, entry.root) not in known:
            message = f"checkpoint {summary(entry.step, entry.root)} did not verify and is passed over: {entry.reason}"
            yield EventNote("Warning", "CheckpointQuarantined", message)


def _chaos(old: TrainingJobStatus, new: TrainingJobStatus) -> Iterator[EventNote]:
    known = {entry.name for entry in old.injected}
    for entry in new.injected:
        if entry.name not in known:
            where = f"rank {entry.rank}" + (f" (pod {entry.pod})" if entry.pod else "")
            yield EventNote("Warning", "ChaosInjected", f"{entry.name}: {entry.fault} on {where} at step {entry.step}")
    for kind in (TrainingJobCondition.CHAOS_REFUSED, TrainingJobCondition.STRAGGLING):
        before, after = find(old, kind), find(new, kind)
        if after is None or (before is not None and (before.status, before.message) == (after.status, after.message)):
            continue
        if after.status == "True":
            yield EventNote("Warning", kind.value, after.message)
        elif is_true(old, kind):
            yield EventNote("Normal", after.reason, after.message)


def _noted(old: TrainingJobStatus, new: TrainingJobStatus) -> Iterator[EventNote]:
    known = {(note.fence, note.message) for note in old.notes}
    for note in new.notes:
        if (note.fence, note.message) not in known:
            yield EventNote("Normal", "Noted", f"rank {note.rank}: {note.message}")


def _profiled(old: TrainingJobStatus, new: TrainingJobStatus) -> Iterator[EventNote]:
    made = new.profile
    if made is not None and made != old.profile:
        yield EventNote("Normal", "Profiled", f"steps {made.first_step} to {made.last_step} are traced in {made.place}")


def _registered(old: TrainingJobStatus, new: TrainingJobStatus) -> Iterator[EventNote]:
    made = new.registered
    if made is not None and made != old.registered:
        yield EventNote("Normal", "Registered", f"{made.name} {made.version} is {made.digest}")


def _compressed(old: TrainingJobStatus, new: TrainingJobStatus) -> Iterator[EventNote]:
    """Once the run has ended with it."""
    report = new.compression
    if report is None or report.after is None or (old.compression and old.compression.after == report.after):
        return
    before, after = report.before, report.after
    if before is None:
        yield EventNote("Normal", "Compressed", f"{_figures(after)}, compressed from the first step on")
    else:
        yield EventNote("Normal", "Compressed", f"{_figures(before)} at step {before.step} became {_figures(after)}")


def _figures(model: ModelFigures) -> str:
    """`accuracy 0.975, loss 0.0812, 4,194,304 bytes`, as far as they are known."""
    known = (("accuracy", model.accuracy), ("loss", model.loss), ("sparsity", model.sparsity))
    told = [f"{name} {value:.4g}" for name, value in known if value is not None]
    return ", ".join([*told, f"{model.bytes:,} bytes"])


def _ended(situation: Situation, old: TrainingJobStatus, new: TrainingJobStatus) -> Iterator[EventNote]:
    if new.restarts.total > old.restarts.total:
        yield EventNote("Warning", "Restarting", restart_sentence(situation.after(new)))
    is_remedy = new.restarts.total > old.restarts.total  # what ranks found by themselves, they have noted
    if is_remedy and (new.micro_splits or 1) > (old.micro_splits or 1):
        message = (
            f"each virtual rank's samples are computed in {new.micro_splits} micro-steps instead of "
            f"{old.micro_splits or 1}; the global batch and the order of the data stay{_what_changes(situation)}"
        )
        yield EventNote("Warning", "MicroBatchSplit", message)
    if new.skips != old.skips:
        spans = ", ".join(f"{skip.first} to {skip.first + skip.count - 1}" for skip in new.skips)
        yield EventNote("Warning", "Rewound", f"left out of the data from now on: batches {spans}")
    known = {record.fence for record in old.recoveries}
    for record in new.recoveries:
        if record.cause == PREEMPTED and record.fence not in known:
            yield EventNote("Warning", PREEMPTED, record.sentence)
    end = end_of(new)
    if end is not None and end_of(old) is None:
        has_succeeded = end.type == TrainingJobCondition.SUCCEEDED
        yield EventNote("Normal" if has_succeeded else "Warning", end.type, f"{end.reason}: {end.message}")
    if is_true(new, TrainingJobCondition.SUSPENDED) and not is_true(old, TrainingJobCondition.SUSPENDED):
        yield EventNote("Normal", "Suspended", new.message or "")


def _what_changes(situation: Situation) -> str:
    """With fewer samples in a micro-step; nothing where every sample is computed on its own."""
    model = situation.blueprint.spec.model
    if model is None or model.custom is None:
        return ""
    return ", but model.custom draws other random numbers, and what it computes over a batch is of fewer samples"


def _resizing(old: TrainingJobStatus, new: TrainingJobStatus) -> Iterator[EventNote]:
    if new.next_world is not None and old.next_world is None:
        yield EventNote("Normal", "Resizing", f"attempt {new.fence} saves and stops: {new.size_message}")


def _started(situation: Situation, plan: Plan, old: TrainingJobStatus, new: TrainingJobStatus) -> Iterator[EventNote]:
    failed = find(new, TrainingJobCondition.FAILED)
    if failed is not None and failed.status == "False" and is_true(old, TrainingJobCondition.FAILED):
        yield EventNote("Normal", failed.reason, failed.message)
    if is_true(old, TrainingJobCondition.SUSPENDED) and new.active_since and not old.active_since:
        yield EventNote("Normal", "Resumed", "spec.suspend is false again")
    if plan.create and new.active_since and not old.active_since:
        names = [pod["metadata"]["name"] for pod in plan.create]
        span = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        yield EventNote(
            "Normal", "PodsCreated", f"created {len(names)} pods: {span}" if len(names) > 1 else f"created {span}"
        )
    if new.fence > old.fence and new.members:
        yield EventNote("Normal", "AttemptStarted", _attempt_sentence(situation, new))
        yield from _resized(new)


def _resized(new: TrainingJobStatus) -> Iterator[EventNote]:
    """The attempt that has just begun is of another size than the one before it."""
    record = new.recoveries[-1] if new.recoveries else None
    if record is None or record.fence != new.fence or record.world_before is None or record.world_after is None:
        return
    size = f"{record.world_after} worker{'s' if record.world_after > 1 else ''} instead of {record.world_before}"
    if record.world_after < record.world_before:
        yield EventNote("Warning", "Shrunk", f"{size}: {record.sentence}")
    elif record.world_after > record.world_before:
        yield EventNote("Normal", "Grown", size)


def _recovered(old: TrainingJobStatus, new: TrainingJobStatus) -> Iterator[EventNote]:
    for record in completed_since(old, new):
        start = f"step {record.step}" + (f" (root {short_root(record.root)})" if record.root else "")
        source = {"Memory": " from memory", "Store": " from the store"}.get(record.source or "", "")
        lost = f"; {_lost(record.steps_lost)} to be done again" if record.steps_lost else ""
        message = f"attempt {record.fence} trains {record.seconds.total:.1f} s after the end before it, since {start}"
        yield EventNote("Normal", "Recovered", f"{message}{source}{lost}")


def _attempt_sentence(situation: Situation, new: TrainingJobStatus) -> str:
    size = f"{situation.world} of {situation.wanted}" if situation.world < situation.wanted else f"{situation.world}"
    workers = f"{size} worker" + ("s" if situation.wanted > 1 else "")
    # Which one it is that verifies, or whether the memory tier has a newer one, is known when they have restored.
    start = "continuing from the newest checkpoint that verifies" if new.floor_step is not None else "from step 0"
    return f"attempt {new.fence}: {workers}, {start}"


def _lost(steps: int) -> str:
    return "1 step has" if steps == 1 else f"{steps} steps have"
