"""Where the job's time went: every second since its creation in exactly one class.

The ledger is brought up to date at every look and written along with what is written anyway. Between two writes rank
0's own ledger (`State.seconds`) tells what it did; what that leaves open goes by what status said meanwhile. Since the
sum of the ledger says until when it goes, no second is counted twice or left out.
"""

from capstan_operator.api.meta import TrainingJobCondition
from capstan_operator.api.recovery_status import GoodputSeconds, GoodputStatus
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.conditions import find, is_true
from capstan_operator.decide.lifecycle import end_of
from capstan_operator.decide.provenance import RESUMED, completed_since, under_way
from capstan_operator.decide.reasons import Reason
from capstan_operator.decide.situation import Situation, Worker
from capstan_runtime.contract.state import Phase, State

CLASS_OF_PHASE = {
    Phase.STARTING: "starting",
    Phase.RESTORING: "restoring",
    Phase.COMPILING: "compiling",
    Phase.TRAINING: "training",
    Phase.SAVING: "saving",
    Phase.EVALUATING: "evaluating",
    Phase.STOPPING: "saving",
}
"""What a second of rank 0 in a phase counts as. In the others it does nothing, and the operator's view decides."""


def account(situation: Situation, old: TrainingJobStatus) -> TrainingJobStatus:
    """`situation.status` with its ledger going on to now; `old` is what status said since the last time."""
    status, before = situation.status, old.goodput or GoodputStatus()
    seconds = before.seconds.model_dump()
    until = situation.observed.job.created_at + sum(seconds.values())
    gap = max(0.0, situation.now - until)
    speaker = situation.after(old).speaker
    word = _speech(speaker, old)
    told = dict(before.attempt) if before.fence == old.fence else {}
    if word is not None:
        unheard = min(gap, max(0.0, word.timeline.get(Phase.STARTING, until) - until))
        seconds[_class_meanwhile(old, None)] += unheard
        gap -= unheard
        fresh = {phase: max(0.0, word.seconds.get(phase, 0.0) - told.get(phase, 0.0)) for phase in CLASS_OF_PHASE}
        # Clocks differ, and the operator may have counted some of it before it was told: never more than there is.
        share = min(1.0, gap / total) if (total := sum(fresh.values())) else 0.0
        for phase, amount in fresh.items():
            seconds[CLASS_OF_PHASE[phase]] += amount * share
            told[phase] = max(told.get(phase, 0.0), word.seconds.get(phase, 0.0))
        gap -= total * share
    phase_now = _phase_now(speaker, old, word)
    if phase_now is not None:
        told[phase_now] = told.get(phase_now, 0.0) + gap
        seconds[CLASS_OF_PHASE[phase_now]] += gap
    else:
        seconds[_class_meanwhile(old, word)] += gap
    lost = sum(record.seconds_lost or 0.0 for record in completed_since(old, status))
    rework = min(lost, seconds["training"])
    seconds["training"] -= rework
    seconds["rework"] += rework
    return status.model_copy(update={"goodput": _ledger(seconds, old.fence, told)})


def _ledger(seconds: dict[str, float], fence: int, told: dict[str, float]) -> GoodputStatus:
    # What rounding takes from one class the next look gives to another: the sum never drifts.
    rounded = {name: max(0.0, round(value, 3)) for name, value in seconds.items()}
    age = sum(rounded.values()) - rounded["suspended"]
    ratio = round(rounded["training"] / age, 4) if age > 0 else 0.0
    return GoodputStatus(
        ratio=ratio,
        percent=f"{100 * ratio:.0f}%",
        seconds=GoodputSeconds(**rounded),
        fence=fence,
        attempt={str(phase): round(value, 3) for phase, value in sorted(told.items()) if value},
    )


def _speech(speaker: Worker | None, old: TrainingJobStatus) -> State | None:
    """What rank 0 says of the attempt that was on; None: nothing, or none was."""
    word = speaker.word if speaker else None
    return word if word is not None and word.fence == old.fence and old.fence > 0 else None


def _phase_now(speaker: Worker | None, old: TrainingJobStatus, word: State | None) -> Phase | None:
    """The phase rank 0 is in since its newest report, as far as anybody knows; None: it is in none that counts."""
    if speaker is None or word is None or word.exit is not None or old.members is None:
        return None
    return word.phase if speaker.is_answering and word.phase in CLASS_OF_PHASE else None


def _class_meanwhile(old: TrainingJobStatus, word: State | None) -> str:
    """What the time went to of which rank 0 tells nothing, by what status said."""
    if end_of(old):
        return "idle"  # it had failed, and goes on
    suspended = find(old, TrainingJobCondition.SUSPENDED)
    if suspended is not None and suspended.reason in (Reason.SUSPENDING, Reason.SUSPENDED):
        return "suspended"
    accepted = find(old, TrainingJobCondition.ACCEPTED)
    if old.members is None:
        if accepted is not None and accepted.status == "False":
            return "idle"
        if is_true(old, TrainingJobCondition.RUNNING):
            return "training"  # a program of the user's own, which tells nothing
        record = under_way(old)
        is_queued = old.reason == Reason.WAITING_FOR_QUOTA
        return "recovering" if record is not None and record.cause != RESUMED and not is_queued else "queued"
    if word is not None and word.exit is None:
        return "idle"  # it is done and waits for the others, or it does not answer
    record = under_way(old)
    is_first_start = not is_true(old, TrainingJobCondition.RUNNING) and (record is None or record.cause == RESUMED)
    return "starting" if word is None and is_first_start else "recovering"
