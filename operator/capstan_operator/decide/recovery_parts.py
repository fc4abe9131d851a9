"""How long each part of a recovery took, from the end of one attempt to the first step of the next.

A record's parts add up to its total by construction: it keeps when the end was and how long each part took, so the next
part begins where the last one ended. What the pods' clocks say is kept between the operator's own times.
"""

from capstan_operator.api.recovery_status import RecoveryStatus
from capstan_operator.decide.progress import MAKES_STEPS, has_stepped
from capstan_operator.decide.situation import Situation
from capstan_operator.decide.times import seconds_since_1970
from capstan_runtime.contract.state import Phase, State


def with_attempt_parts(
    record: RecoveryStatus, situation: Situation, word: State | None, until: float
) -> RecoveryStatus:
    """`record` with the parts that the pods' own timelines tell: from the beginning of the attempt to its first step,
    or, if it made none, to `until`."""
    timeline = word.timeline if word else {}
    taken = [
        worker.word.timeline[Phase.STARTING]
        for worker in situation.workers
        if worker.word and worker.word.fence == record.fence and Phase.STARTING in worker.word.timeline
    ]
    first_step = min((timeline[phase] for phase in MAKES_STEPS & timeline.keys()), default=None)
    if first_step is None and word is not None and has_stepped(word):
        first_step = until
    ends = {
        "drain": max(taken, default=None),
        "form": timeline.get(Phase.RESTORING, timeline.get(Phase.COMPILING)),
        "restore": timeline.get(Phase.COMPILING),
        "compile": first_step,
    }
    if not taken:
        del ends["drain"]
    reached = [part for part, end in ends.items() if end is not None]
    last = list(ends).index(reached[-1]) if reached else -1
    for position, (part, end) in enumerate(ends.items()):
        if position > last:
            return extended(record, part, until)  # this part it was in when it ended
        later = [known for known in list(ends.values())[position:] if known is not None]
        record = extended(record, part, min(later[0] if end is None else end, until))
    return _split_first_step(_split_evaluation(_split_verification(record, word), word, first_step), word)


def _split_verification(record: RecoveryStatus, word: State | None) -> RecoveryStatus:
    """Hashing goes on while bytes are read, on several threads: at most the whole restore is said to be it."""
    restore = record.seconds.restore
    if word is None or word.restored is None or not restore or not word.restored.verify_seconds:
        return record
    verify = round(min(restore, word.restored.verify_seconds), 3)
    return with_seconds(record, restore=round(restore - verify, 3), verify=verify)


def _split_evaluation(record: RecoveryStatus, word: State | None, first_step: float | None) -> RecoveryStatus:
    """What the attempt before owed is measured between restoring and the first step."""
    compile_ = record.seconds.compile
    began = word.timeline.get(Phase.EVALUATING) if word else None
    if word is None or not compile_ or began is None or (first_step is not None and began > first_step):
        return record
    evaluate = round(min(compile_, word.seconds.get(Phase.EVALUATING, 0.0)), 3)
    return with_seconds(record, compile=round(compile_ - evaluate, 3), evaluate=evaluate) if evaluate else record


def _split_first_step(record: RecoveryStatus, word: State | None) -> RecoveryStatus:
    compile_ = record.seconds.compile
    step_seconds = (word.metrics.get("step_seconds") if word else None) or record.step_seconds
    if not compile_ or not step_seconds:
        return record
    step = round(min(compile_, step_seconds), 3)
    return with_seconds(record, compile=round(compile_ - step, 3), first_step=step)


def extended(record: RecoveryStatus, part: str, until: float) -> RecoveryStatus:
    """`record` with `part` from where its parts end so far until `until`. No part is ever negative."""
    begins = seconds_since_1970(record.at) + record.seconds.total
    return with_seconds(record, **{part: max(0.0, round(until - begins, 3))})


def with_seconds(record: RecoveryStatus, **parts: float) -> RecoveryStatus:
    """`record` with `parts`, in seconds, in place of those of these names, and the total that follows."""
    seconds = record.seconds.model_copy(update=dict(parts))
    known = seconds.model_dump(exclude={"total"}, exclude_none=True)
    total = round(sum(known.values()), 3)
    return record.model_copy(update={"seconds": seconds.model_copy(update={"total": total})})
