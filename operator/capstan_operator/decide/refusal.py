"""What status says when a decision was right but the API server would not have all of it carried out."""

from enum import StrEnum

from capstan_operator.api.meta import Condition, Phase, TrainingJobCondition
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.conditions import ConditionType, Status, find, put_condition
from capstan_operator.decide.lifecycle import end_of
from capstan_operator.decide.reasons import Reason
from capstan_operator.observe import Observed


def show_refusal(observed: Observed, reason: Reason, message: str, now: float) -> TrainingJobStatus:
    """The status as it was, with `message` for what keeps it from going on. Nothing of the decision is claimed, and how
    a job has ended stays what is told of it."""
    job = observed.job
    if end_of(job.status):
        return job.status
    is_progressing = reason is Reason.PREDECESSOR_LEAVING
    status = put_condition(
        job.status, TrainingJobCondition.PROGRESSING, is_progressing, reason, message, now, job.generation
    )
    return status.model_copy(
        update={
            "observed_generation": job.generation,
            "phase": job.status.phase or Phase.PENDING.value,
            "reason": reason.value,
            "message": message,
        }
    )


def with_refusal(
    decided: Status,
    recorded: Status,
    progressing: ConditionType,
    *,
    is_passing: bool,
    reason: StrEnum,
    message: str,
    now: float,
    generation: int,
) -> Status:
    """Of a kind whose status tells what was seen whatever could be done: the status that was decided, with `message`
    for what could not. `recorded` is what was last written, so that the time of its last change is not that of a
    condition that never was; `is_passing`: it goes on by itself."""
    before = find(recorded, progressing)
    others: list[Condition] = [one for one in decided.conditions if one.type != progressing]
    unchanged = decided.model_copy(update={"conditions": [*others, before] if before else others})
    status = put_condition(unchanged, progressing, is_passing, reason, message, now, generation)
    return status.model_copy(update={"reason": reason.value, "message": message})
