"""What status says when a decision was right but the API server would not have all of it carried out."""

from capstan_operator.api.benchmark_status import BenchmarkStatus
from capstan_operator.api.meta import BenchmarkCondition
from capstan_operator.decide.bench.reasons import BenchReason
from capstan_operator.decide.conditions import put_condition
from capstan_operator.observe import ObservedBenchmark


def show_refusal(
    decided: BenchmarkStatus, benchmark: ObservedBenchmark, reason: BenchReason, message: str, now: float
) -> BenchmarkStatus:
    """The status that was decided, with `message` for what could not be done."""
    kind = BenchmarkCondition.PROGRESSING
    # From what is on record, so that the time of its last change is not that of a condition that was never written.
    before = next((one for one in benchmark.status.conditions if one.type == kind), None)
    others = [one for one in decided.conditions if one.type != kind]
    unchanged = decided.model_copy(update={"conditions": [*others, before] if before else others})
    is_progressing = reason is BenchReason.PREDECESSOR_LEAVING
    status = put_condition(unchanged, kind, is_progressing, reason, message, now, benchmark.generation)
    return status.model_copy(update={"reason": reason.value, "message": message})
