"""Conditions: one fact each, in a fixed order, stamped when their status turns."""

from enum import StrEnum
from typing import TypeVar

from capstan_operator.api.benchmark_status import BenchmarkStatus
from capstan_operator.api.inference_service_status import InferenceServiceStatus
from capstan_operator.api.meta import BenchmarkCondition, Condition, InferenceServiceCondition, TrainingJobCondition
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.progress import summary
from capstan_operator.decide.queueing import late_queue
from capstan_operator.decide.reasons import Reason
from capstan_operator.decide.situation import Situation, has_changed_pods, is_changed
from capstan_operator.decide.sizing import idle_stages, unreachable_size
from capstan_operator.decide.times import rfc3339

Status = TypeVar("Status", TrainingJobStatus, InferenceServiceStatus, BenchmarkStatus)
AnyStatus = TrainingJobStatus | InferenceServiceStatus | BenchmarkStatus
ConditionType = TrainingJobCondition | InferenceServiceCondition | BenchmarkCondition
"""They stand in the order in which their enumeration names them."""

LATE_CHANGE = (
    "checkpoint.interval, retention and verify, parallelism, callbacks, tracking, recordSteps and, of recovery, "
    "deadlines, numerical, warmSpare and memoryTier stay as they were when the pods first started; to have them "
    "followed, set spec.suspend to true, and to false again when no pod is left"
)
LATE_PODS = (
    "what changed of workers.image, gang, gpus, resources, nodeSelector, tolerations or podPatch holds for pods that "
    "are made from now on; to have it for all, set spec.suspend to true, and to false again when no pod is left"
)


def find(status: AnyStatus, kind: ConditionType) -> Condition | None:
    """The condition of this kind; None: nothing is said about it."""
    return next((condition for condition in status.conditions if condition.type == kind), None)


def is_true(status: AnyStatus, kind: ConditionType) -> bool:
    """The condition is there and True."""
    condition = find(status, kind)
    return condition is not None and condition.status == "True"


def put_condition(
    status: Status,
    kind: ConditionType,
    is_met: bool | None,
    reason: StrEnum,
    message: str,
    now: float,
    generation: int,
) -> Status:
    """`status` with this condition set; None is Unknown. The time of transition stays while the status does."""
    word = {True: "True", False: "False", None: "Unknown"}[is_met]
    old = find(status, kind)
    since = old.last_transition_time if old and old.status == word else rfc3339(now)
    condition = Condition.model_validate(
        {
            "type": kind.value,
            "status": word,
            "reason": reason.value,
            "message": message,
            "last_transition_time": since,
            "observed_generation": generation,
        }
    )
    others: list[Condition] = [other for other in status.conditions if other.type != kind]
    order = list(type(kind))
    return status.model_copy(update={"conditions": sorted([*others, condition], key=lambda c: order.index(c.type))})


def put(
    situation: Situation,
    status: TrainingJobStatus,
    kind: TrainingJobCondition,
    is_met: bool | None,
    reason: Reason,
    message: str,
) -> TrainingJobStatus:
    """`put_condition` with time and generation of `situation`."""
    return put_condition(status, kind, is_met, reason, message, situation.now, situation.observed.job.generation)


def put_accepted(situation: Situation, status: TrainingJobStatus) -> TrainingJobStatus:
    """The spec is valid; what of it comes too late is said."""
    known = situation.status, situation.blueprint
    late = LATE_CHANGE if is_changed(*known) else None
    late_pods = LATE_PODS if has_changed_pods(*known) else None
    sentences = (unreachable_size(situation), late, late_pods, late_queue(situation))
    unfollowed = [sentence for sentence in sentences if sentence]
    if unfollowed:
        message = "; ".join(unfollowed)
        return put(situation, status, TrainingJobCondition.ACCEPTED, True, Reason.PARTLY_APPLIED, message)
    message = "; ".join(["the spec is valid", *filter(None, [idle_stages(situation)])])
    return put(situation, status, TrainingJobCondition.ACCEPTED, True, Reason.VALID, message)


def put_checkpoint_verified(situation: Situation, status: TrainingJobStatus) -> TrainingJobStatus:
    """Whether the bytes of the newest committed checkpoint are known to match its digests."""
    return put(situation, status, TrainingJobCondition.CHECKPOINT_VERIFIED, *_verdict(status))


def _verdict(status: TrainingJobStatus) -> tuple[bool | None, Reason, str]:
    newest = status.checkpoint
    passed_over = "".join(
        f"; {summary(entry.step, entry.root)} was passed over: {entry.reason}" for entry in status.quarantined[-1:]
    )
    if newest is None and status.quarantined:
        return False, Reason.NONE_VERIFIED, f"no committed checkpoint verifies{passed_over}"
    if newest is None:
        return None, Reason.NO_CHECKPOINT_YET, "nothing has been committed so far"
    if newest.verified_at:
        return True, Reason.READ_BACK, f"all bytes of {newest.summary} match their digests{passed_over}"
    message = f"{newest.summary} was hashed and committed; its bytes are read back before any resume{passed_over}"
    return None, Reason.COMMITTED, message
