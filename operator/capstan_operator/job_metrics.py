"""What the operator tells Prometheus about its jobs: where their time goes, what recoveries cost, what chaos did.

Everything is read off statuses as they are written, so a restarted operator goes on from what is stored. No label holds
a name. What chaos does carries the tag CHAOS, by which alerts and dashboards tell it from what nobody wanted.
"""

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from capstan_operator.api.recovery_status import GoodputSeconds, InjectedStatus
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.provenance import completed_since
from capstan_operator.decide.times import seconds_since_1970
from capstan_runtime.contract.chaos import Fault

TAG = "CHAOS"
UNNOTICED_SECONDS = 60.0
"""How long an injection that has no recovery counts as active: one that nothing fails of has none."""
_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
_LASTING = frozenset({Fault.SLOW_RANK, Fault.SLOW_NETWORK, Fault.DATA_STALL})
_DEFAULT_DURATION = 10.0


@dataclass(slots=True)
class _Known:
    """What is remembered of one job."""

    status: TrainingJobStatus
    counted: dict[str, float]
    """Seconds by class that are in the counter, or were spent before this operator knew the job."""
    durations: dict[str, float]
    """Of its injections, by name."""


class JobMetrics:
    """Series about all jobs together. `clock` gives seconds since 1970."""

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._jobs: dict[Hashable, _Known] = {}
        ratio = Gauge(
            "capstan_goodput_ratio",
            "Share of training in all time, but suspended, of the jobs at work; NaN when there is none.",
            registry=registry,
        )
        ratio.set_function(self._ratio)
        self._seconds = Counter(
            "capstan_goodput_seconds", "Seconds of jobs, by what they were spent on.", ["class"], registry=registry
        )
        self._recovery = Histogram(
            "capstan_recovery_seconds",
            "Seconds from the end of an attempt to the first step of the next, by part and cause.",
            ["phase", "cause"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._lost_steps = Counter(
            "capstan_lost_steps", "Steps that had to be done again, by cause.", ["cause"], registry=registry
        )
        self._injections = Counter(
            "capstan_chaos_injections", "Faults injected on purpose.", ["fault", "tag"], registry=registry
        )
        active = Gauge(
            "capstan_chaos_active",
            "Injected faults that last, or that a job has not recovered from.",
            ["fault", "tag"],
            registry=registry,
        )
        for fault in Fault:
            active.labels(fault.value, TAG).set_function(partial(self._count_active, fault))

    def know(self, key: Hashable, status: TrainingJobStatus, spec: Mapping[str, Any]) -> None:
        """This is what status says of a job now; nothing of it is counted."""
        known = self._jobs.get(key)
        if known is None:
            self._jobs[key] = _Known(status, _seconds_of(status), _durations(spec))
        else:
            known.status, known.durations = status, _durations(spec)

    def count(self, key: Hashable, old: TrainingJobStatus, new: TrainingJobStatus, spec: Mapping[str, Any]) -> None:
        """`old` was just replaced by `new`: what happened between them is counted."""
        self.know(key, old, spec)
        known = self._jobs[key]
        known.status = new
        for name, seconds in _seconds_of(new).items():
            # Training that turned out to be in vain was counted as training: it is made good before more is counted.
            more = seconds - known.counted.get(name, 0.0)
            if more > 0:
                self._seconds.labels(name).inc(more)
                known.counted[name] = seconds
        for record in completed_since(old, new):
            for part, seconds in record.seconds.model_dump(exclude_none=True, by_alias=True).items():
                self._recovery.labels(part, record.cause).observe(seconds)
            if record.steps_lost:
                self._lost_steps.labels(record.cause).inc(record.steps_lost)
        injected_before = {entry.name for entry in old.injected}
        for entry in new.injected:
            if entry.name not in injected_before:
                self._injections.labels(entry.fault, TAG).inc()

    def forget(self, key: Hashable) -> None:
        """The job is gone."""
        self._jobs.pop(key, None)

    def reset(self) -> None:
        """Another operator looks after all jobs from now on."""
        self._jobs.clear()

    def _ratio(self) -> float:
        ledgers = [_seconds_of(known.status) for known in self._jobs.values() if known.status.finished_at is None]
        total = sum(sum(seconds.values()) - seconds["suspended"] for seconds in ledgers)
        return sum(seconds["training"] for seconds in ledgers) / total if total > 0 else float("nan")

    def _count_active(self, fault: Fault) -> int:
        now = self._clock()
        return sum(
            _is_active(entry, known, now)
            for known in self._jobs.values()
            if known.status.finished_at is None
            for entry in known.status.injected
            if entry.fault == fault
        )


def _is_active(entry: InjectedStatus, known: _Known, now: float) -> bool:
    at = seconds_since_1970(entry.at)
    if entry.fault in _LASTING:
        return now < at + known.durations.get(entry.name, _DEFAULT_DURATION)
    record = next((record for record in known.status.recoveries if record.chaos == entry.name), None)
    return now < at + UNNOTICED_SECONDS if record is None else record.recovered_at is None


def _seconds_of(status: TrainingJobStatus) -> dict[str, float]:
    seconds = status.goodput.seconds if status.goodput else GoodputSeconds()
    return dict(seconds.model_dump())


def _durations(spec: Mapping[str, Any]) -> dict[str, float]:
    """What the user wrote, not validated: a spec that is refused may hold anything."""
    entries = spec.get("chaos")
    return {
        str(entry.get("name")): float(duration)
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and isinstance(duration := entry.get("durationSeconds"), int | float)
    }
