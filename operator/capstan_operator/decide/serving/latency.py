"""How long answers take, on status: fresh enough to be of use, and calm enough to cost no writes of its own."""

from capstan_operator.api.inference_service_status import InferenceServiceStatus, LatencyStatus, RevisionStatus
from capstan_operator.decide.serving.fleet import Fleet
from capstan_operator.decide.times import rfc3339, seconds_after

TWO_BUCKETS = 1.5
"""Neighbouring buckets of replicas' histograms are at most a factor of 1.28 apart, every second one at least 1.55."""
LEAST_SECONDS = 60.0
"""Between two writes that latency alone is a reason for: with half of the requests quick and half of them slow, the
median is now the one and now the other."""


def with_latencies(fleet: Fleet) -> InferenceServiceStatus:
    """`fleet.status` with the latencies on record; with those of now if they are reason enough to write, or if it is
    written anyway."""
    status = fleet.status
    is_written = status != fleet.seen.service.status or any(_is_due(fleet, one) for one in status.revisions)
    if not is_written:
        return status
    revisions = [one.model_copy(update={"latency": _fresh(fleet, one)}) for one in status.revisions]
    return status.model_copy(update={"revisions": revisions})


def _is_due(fleet: Fleet, known: RevisionStatus) -> bool:
    old, new = known.latency, _fresh(fleet, known)
    if new is None:
        return False
    if old is None:
        return True
    has_changed = _is_far(old.p50_milliseconds, new.p50_milliseconds) or _is_far(
        old.p99_milliseconds, new.p99_milliseconds
    )
    return has_changed and seconds_after(old.at, fleet.now) >= LEAST_SECONDS


def _is_far(old: float | None, new: float | None) -> bool:
    """Whether it appeared, or moved by two buckets. That it cannot be told any more is no reason to write."""
    if old is None or new is None:
        return new is not None
    return max(old, new) >= TWO_BUCKETS * min(old, new)


def _fresh(fleet: Fleet, known: RevisionStatus) -> LatencyStatus | None:
    """As it is now; what is on record if that says the same."""
    seen = fleet.seen.latencies.get(known.name)
    if seen is None or (seen.p50 is None and seen.p99 is None):
        return None
    old = known.latency
    p50, p99 = _milliseconds(seen.p50), _milliseconds(seen.p99)
    if old is not None and (old.p50_milliseconds, old.p99_milliseconds) == (p50, p99):
        return old
    return LatencyStatus(p50_milliseconds=p50, p99_milliseconds=p99, at=rfc3339(fleet.now))


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)
