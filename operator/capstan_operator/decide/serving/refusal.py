"""What status says when a decision was right but the API server would not have it carried out."""

from capstan_operator.api.inference_service_status import InferenceServiceStatus
from capstan_operator.api.meta import InferenceServiceCondition
from capstan_operator.decide.conditions import put_condition
from capstan_operator.decide.serving.reasons import ServingReason
from capstan_operator.observe import ObservedServing


def show_refusal(observed: ObservedServing, reason: ServingReason, message: str, now: float) -> InferenceServiceStatus:
    """The status as it was, with `message` for what keeps it from going on. Nothing of the decision is claimed, and
    what serves goes on serving."""
    service = observed.service
    is_progressing = reason is ServingReason.PREDECESSOR_LEAVING
    kind = InferenceServiceCondition.PROGRESSING
    status = put_condition(service.status, kind, is_progressing, reason, message, now, service.generation)
    return status.model_copy(
        update={"observed_generation": service.generation, "reason": reason.value, "message": message}
    )
