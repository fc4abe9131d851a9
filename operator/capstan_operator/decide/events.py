"""What happened, as events on the job: the difference between two statuses, told once."""

from collections.abc import Iterator

from capstan_operator.api.meta import TrainingJobCondition
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.conditions import find, is_true
from capstan_operator.decide.failure import restart_sentence
from capstan_operator.decide.lifecycle import end_of
from capstan_operator.decide.plan import Plan
from capstan_operator.decide.progress import short_root, summary
from capstan_operator.decide.reasons import Reason
from capstan_operator.decide.situation import Situation
from capstan_operator.decide.types import EventNote


def tell(situation: Situation, plan: Plan, old: TrainingJobStatus, new: TrainingJobStatus) -> tuple[EventNote, ...]:
    """The events that the step from `old` to `new` is worth, in the order in which things happened."""
    tales = (
        _accepted(old, new),
        _quarantined(old, new),
        _ended(situation, old, new),
        _resizing(old, new),
        _started(situation, plan, old, new),
    )
    return tuple(note for tale in tales for note in tale)


def _accepted(old: TrainingJobStatus, new: TrainingJobStatus) -> Iterator[EventNote]:
    before, after = find(old, TrainingJobCondition.ACCEPTED), find(new, TrainingJobCondition.ACCEPTED)
    if after is None or (before is not None and (before.status, before.reason) == (after.status, after.reason)):
        return
    if after.reason == Reason.PARTLY_APPLIED:
        yield EventNote("Warning", after.reason, after.message)
    elif before is None or before.status != "True":
        yield EventNote("Normal", "Accepted", after.message)


def _quarantined(old: TrainingJobStatus, new: TrainingJobStatus) -> Iterator[EventNote]:
    known = {(entry.step, entry.root) for entry in old.quarantined}
    for entry in new.quarantined:
        if (entry.step, entry.root) not in known:
            message = f"checkpoint {summary(entry.step, entry.root)} did not verify and is passed over: {entry.reason}"
            yield EventNote("Warning", "CheckpointQuarantined", message)


def _ended(situation: Situation, old: TrainingJobStatus, new: TrainingJobStatus) -> Iterator[EventNote]:
    if new.restarts.total > old.restarts.total:
        yield EventNote("Warning", "Restarting", restart_sentence(situation.after(new)))
    end = end_of(new)
    if end is not None and end_of(old) is None:
        has_succeeded = end.type == TrainingJobCondition.SUCCEEDED
        yield EventNote("Normal" if has_succeeded else "Warning", end.type, f"{end.reason}: {end.message}")
    if is_true(new, TrainingJobCondition.SUSPENDED) and not is_true(old, TrainingJobCondition.SUSPENDED):
        yield EventNote("Normal", "Suspended", new.message or "")


def _resizing(old: TrainingJobStatus, new: TrainingJobStatus) -> Iterator[EventNote]:
    if new.next_world is not None and old.next_world is None:
        yield EventNote("Normal", "Resizing", f"attempt {new.fence} saves and stops: {new.size_message}")


def _started(situation: Situation, plan: Plan, old: TrainingJobStatus, new: TrainingJobStatus) -> Iterator[EventNote]:
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


def _attempt_sentence(situation: Situation, new: TrainingJobStatus) -> str:
    size = f"{situation.world} of {situation.wanted}" if situation.world < situation.wanted else f"{situation.world}"
    workers = f"{size} worker" + ("s" if situation.wanted > 1 else "")
    if new.checkpoint:
        start = f"step {new.checkpoint.step} (root {short_root(new.checkpoint.root)})"
    else:
        # With nothing but checkpoints that did not verify the trainer will not start over; it stops.
        start = "the newest checkpoint that verifies, if there is one" if new.quarantined else "step 0"
    return f"attempt {new.fence}: {workers} from {start}"
