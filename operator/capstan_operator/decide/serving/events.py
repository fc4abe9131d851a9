"""What is worth an event: what became of revisions, how many pods there are, whether the address answers."""

from capstan_operator.api.inference_service_status import InferenceServiceStatus
from capstan_operator.api.meta import InferenceServiceCondition
from capstan_operator.decide.conditions import find
from capstan_operator.decide.types import EventNote


def tell(old: InferenceServiceStatus, new: InferenceServiceStatus) -> tuple[EventNote, ...]:
    """Of a status that follows another, what somebody should hear of."""
    return (
        *_of_acceptance(old, new),
        *_of_revisions(old, new),
        *_of_rollout(old, new),
        *_of_size(old, new),
        *_of_serving(old, new),
        *_of_routing(old, new),
    )


def _of_acceptance(old: InferenceServiceStatus, new: InferenceServiceStatus) -> list[EventNote]:
    before, after = (find(status, InferenceServiceCondition.ACCEPTED) for status in (old, new))
    if after is None or after.status == "True":
        return []
    is_known = before is not None and (before.status, before.message) == (after.status, after.message)
    return [] if is_known else [EventNote("Warning", after.reason, after.message)]


def _of_revisions(old: InferenceServiceStatus, new: InferenceServiceStatus) -> list[EventNote]:
    before = {one.name for one in old.revisions if one.failure}
    notes = [
        EventNote("Warning", one.failure.reason, f"{one.name} was given up: {one.failure.message}")
        for one in new.revisions
        if one.failure and one.name not in before
    ]
    if new.stable and new.stable != old.stable:
        what = "has proven itself" if old.stable else "is the first that is ready"
        notes.append(EventNote("Normal", "Promoted", f"{new.stable} {what}"))
    return notes


def _of_rollout(old: InferenceServiceStatus, new: InferenceServiceStatus) -> list[EventNote]:
    before, after = old.rollout, new.rollout
    if after is None:
        is_dropped = before is not None and new.stable == old.stable and len(new.revisions) == len(old.revisions)
        failed = {one.name for one in new.revisions if one.failure}
        if before is not None and is_dropped and before.candidate not in failed:
            return [EventNote("Normal", "Abandoned", f"{before.candidate} is not asked for any more")]
        return []
    is_new = before is None or (before.candidate, before.phase, before.step) != (
        after.candidate,
        after.phase,
        after.step,
    )
    if not is_new:
        return []
    step = f", step {after.step + 1}" if after.step is not None else ""
    return [EventNote("Normal", after.phase, f"{after.candidate}: {after.phase}{step}")]


def _of_size(old: InferenceServiceStatus, new: InferenceServiceStatus) -> list[EventNote]:
    is_changed = old.replicas and new.replicas and old.replicas != new.replicas
    return [EventNote("Normal", "Scaled", new.scaled)] if is_changed and new.scaled else []


def _of_serving(old: InferenceServiceStatus, new: InferenceServiceStatus) -> list[EventNote]:
    before, after = (find(status, InferenceServiceCondition.SERVING) for status in (old, new))
    if after is None or (before is not None and before.status == after.status):
        return []
    if after.status == "True":
        return [EventNote("Normal", "Serving", f"{new.url} answers")]
    return [EventNote("Warning", after.reason, after.message)] if before is not None else []


def _of_routing(old: InferenceServiceStatus, new: InferenceServiceStatus) -> list[EventNote]:
    before, after = (find(status, InferenceServiceCondition.ROUTED) for status in (old, new))
    is_refused = after is not None and after.status == "False" and (before is None or before.status != "False")
    return [EventNote("Warning", after.reason, after.message)] if after is not None and is_refused else []
