"""What status says when a decision was right but the API server would not have all of it carried out."""

from capstan_operator.api.inference_service_status import InferenceServiceStatus
from capstan_operator.api.meta import InferenceServiceCondition
from capstan_operator.decide.conditions import put_condition
from capstan_operator.decide.serving.reasons import ServingReason
from capstan_operator.observe import ObservedService


def show_refusal(
    decided: InferenceServiceStatus, service: ObservedService, reason: ServingReason, message: str, now: float
) -> InferenceServiceStatus:
    """The status that was decided, which tells what was seen, with `message` for what could not be done."""
    is_progressing = reason is ServingReason.PREDECESSOR_LEAVING
    kind = InferenceServiceCondition.PROGRESSING
    # From what is on record, so that the time of its last change is not that of a condition that was never written.
    before = next((one for one in service.status.conditions if one.type == kind), None)
    others = [one for one in decided.conditions if one.type != kind]
    unchanged = decided.model_copy(update={"conditions": [*others, before] if before else others})
    status = put_condition(unchanged, kind, is_progressing, reason, message, now, service.generation)
    return status.model_copy(update={"reason": reason.value, "message": message})
