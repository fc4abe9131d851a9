"""While nothing can be begun: the spec is refused or means another plan, or a baseline to be run again is missing."""

from capstan_operator.api.benchmark import BenchmarkSpec
from capstan_operator.api.benchmark_status import BenchmarkStatus
from capstan_operator.decide.bench.children import strays
from capstan_operator.decide.bench.events import tell
from capstan_operator.decide.bench.outcome import GRACE_SECONDS
from capstan_operator.decide.bench.types import BenchDecision
from capstan_operator.decide.times import seconds_after
from capstan_operator.observe_benchmark import ObservedBenching


def stand_still(observed: ObservedBenching, status: BenchmarkStatus, now: float) -> BenchDecision:
    """`status` tells why. What runs goes on, unless its user suspends it or its time is up: then it is stopped, which
    costs no attempt; it is begun again when runs can be begun."""
    old = observed.benchmark.status
    running = status.running
    left = _deadline(observed) + GRACE_SECONDS - seconds_after(running.started_at, now) if running else None
    if left is not None and (left <= 0 or observed.benchmark.spec.get("suspend") is True):
        stopped = status.model_copy(update={"running": None})
        return BenchDecision(status=stopped, events=tell(old, stopped), requeue_after=0.0)
    left_over = tuple(strays(observed, frozenset())) if running is None else ()
    return BenchDecision(status=status, delete=left_over, events=tell(old, status), requeue_after=left)


def _deadline(observed: ObservedBenching) -> float:
    """`spec.trialDeadlineSeconds` of a spec that may be wrong anywhere."""
    found = observed.benchmark.spec.get("trialDeadlineSeconds")
    if isinstance(found, int) and not isinstance(found, bool):
        return float(found)
    return float(BenchmarkSpec.model_fields["trial_deadline_seconds"].default)
