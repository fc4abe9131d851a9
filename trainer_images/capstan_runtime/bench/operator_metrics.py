"""What an operator says of itself before and after: calls per job, and how long passes took."""

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

_CALLS = "capstan_operator_api_requests_total"
_PASSES = "capstan_operator_reconcile_seconds"


@dataclass(frozen=True, slots=True)
class OperatorCounters:
    """At one moment, or between two."""

    api_calls: float
    passes: float
    pass_seconds: float
    """Of all of them together."""
    buckets: Mapping[float, float]
    """Passes that took at most so many seconds."""

    def since(self, before: "OperatorCounters") -> "OperatorCounters | None":
        """What was counted in between; None: it began anew, or another replica answered."""
        buckets = {bound: count - before.buckets.get(bound, 0.0) for bound, count in self.buckets.items()}
        counts = (self.api_calls - before.api_calls, self.passes - before.passes, *buckets.values())
        if min(counts) < 0:
            return None
        return OperatorCounters(counts[0], counts[1], self.pass_seconds - before.pass_seconds, buckets)

    def quantile(self, share: float) -> float:
        """Seconds that `share` of the passes took at most, evenly spread inside a bucket, as histogram_quantile of
        PromQL has it; infinity beyond the last bound. There must be passes."""
        wanted, lower, below = share * self.passes, 0.0, 0.0
        for bound, count in sorted(self.buckets.items()):
            if count >= wanted and count > below:
                return lower + (bound - lower) * (wanted - below) / (count - below) if bound != float("inf") else bound
            lower, below = bound, count
        return float("inf")


def parse_counters(text: str) -> OperatorCounters:
    """Of the operator's /metrics. What is not there is 0: nothing was counted yet."""
    calls = passes = seconds = 0.0
    buckets: dict[float, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == _CALLS:
                calls += sample.value
            elif sample.name == f"{_PASSES}_count":
                passes += sample.value
            elif sample.name == f"{_PASSES}_sum":
                seconds += sample.value
            elif sample.name == f"{_PASSES}_bucket":
                bound = float(sample.labels["le"])
                buckets[bound] = buckets.get(bound, 0.0) + sample.value
    return OperatorCounters(calls, passes, seconds, buckets)
