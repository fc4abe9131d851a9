"""What status says when a decision was right but the API server would not have it carried out."""

from capstan_operator.api.meta import Phase, TrainingJobCondition
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.conditions import put_condition
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
