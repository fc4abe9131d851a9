"""What status says when a decision was right but the API server would not have it carried out."""

from capstan_operator.api.meta import Phase, TrainingJobCondition
from capstan_operator.api.training_job import TrainingJobStatus
from capstan_operator.decide.conditions import put_condition
from capstan_operator.decide.reasons import Reason
from capstan_operator.observe import Observed


def show_refusal(observed: Observed, reason: Reason, message: str, now: float) -> TrainingJobStatus:
    """The status as it was, no longer progressing because of `message`. Nothing of the decision is claimed."""
    job = observed.job
    status = put_condition(job.status, TrainingJobCondition.PROGRESSING, False, reason, message, now, job.generation)
    return status.model_copy(
        update={
            "observed_generation": job.generation,
            "phase": job.status.phase or Phase.PENDING.value,
            "reason": reason.value,
            "message": message,
        }
    )
