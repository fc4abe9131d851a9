"""What Prometheus is told about jobs: counted once, from what was written."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry

from capstan_operator.api.recovery_status import (
    GoodputSeconds,
    GoodputStatus,
    InjectedStatus,
    RecoverySeconds,
    RecoveryStatus,
)
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.cluster.work_queue import ObjectKey
from capstan_operator.decide.times import rfc3339_millis
from capstan_operator.job_metrics import JobMetrics

KEY, OTHER = ObjectKey("default", "one"), ObjectKey("default", "two")


class Told:
    """Job metrics, and the values of their series."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.now = 1000.0
        self.metrics = JobMetrics(self.registry, clock=lambda: self.now)

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"capstan_{name}", labels) or 0.0

    def seconds(self, name: str) -> float:
        return self.value("goodput_seconds_total", **{"class": name})


def spent(**seconds: float) -> TrainingJobStatus:
    return TrainingJobStatus(goodput=GoodputStatus(seconds=GoodputSeconds(**seconds)))


def record(chaos: str | None = None, *, is_recovered: bool = True) -> RecoveryStatus:
    return RecoveryStatus(
        fence=2,
        at=rfc3339_millis(990.0),
        recovered_at=rfc3339_millis(994.0) if is_recovered else None,
        cause="Crash",
        sentence="",
        steps_lost=7,
        chaos=chaos,
        seconds=RecoverySeconds(detect=1.0, restore=3.0, total=4.0),
    )


def test_only_what_this_operator_wrote_is_counted_and_what_was_in_vain_not_twice() -> None:
    told = Told()
    told.metrics.count(KEY, spent(training=100.0), spent(training=110.0, saving=1.0), {})
    assert (told.seconds("training"), told.seconds("saving")) == (10.0, 1.0)
    told.metrics.count(KEY, spent(training=110.0), spent(training=105.0, rework=5.0), {})
    assert (told.seconds("training"), told.seconds("rework")) == (10.0, 5.0)
    told.metrics.count(KEY, spent(training=105.0), spent(training=112.0, rework=5.0), {})
    assert told.seconds("training") == 12.0


def test_the_ratio_is_of_all_jobs_at_work() -> None:
    told = Told()
    assert math.isnan(told.value("goodput_ratio"))
    told.metrics.know(KEY, spent(training=30.0, idle=10.0, suspended=1000.0), {})
    told.metrics.know(OTHER, spent(training=30.0, queued=30.0), {})
    assert told.value("goodput_ratio") == 0.6
    told.metrics.know(OTHER, spent(queued=30.0).model_copy(update={"finished_at": "1970-01-01T00:00:00Z"}), {})
    assert told.value("goodput_ratio") == 0.75
    told.metrics.forget(KEY)
    assert math.isnan(told.value("goodput_ratio"))


def test_a_recovery_is_observed_in_its_parts_when_it_is_complete() -> None:
    told = Told()
    begun, done = (TrainingJobStatus(recoveries=[record(is_recovered=is_done)]) for is_done in (False, True))
    for old, new in ((TrainingJobStatus(), begun), (begun, done), (done, done)):
        told.metrics.count(KEY, old, new, {})
    assert told.value("recovery_seconds_count", phase="restore", cause="Crash") == 1
    assert told.value("recovery_seconds_sum", phase="total", cause="Crash") == 4.0
    assert told.value("recovery_seconds_count", phase="compile", cause="Crash") == 0
    assert told.value("lost_steps_total", cause="Crash") == 7


def injected(fault: str) -> InjectedStatus:
    return InjectedStatus(name="a", fault=fault, fence=1, rank=0, step=5, at=rfc3339_millis(990.0))


def test_chaos_is_counted_once_and_active_until_the_job_has_recovered() -> None:
    told = Told()
    before, hit = TrainingJobStatus(), TrainingJobStatus(injected=[injected("Kill")])
    told.metrics.count(KEY, before, hit, {})
    told.metrics.count(KEY, hit, hit.model_copy(update={"recoveries": [record("a", is_recovered=False)]}), {})
    labels = {"fault": "Kill", "tag": "CHAOS"}
    assert (told.value("chaos_injections_total", **labels), told.value("chaos_active", **labels)) == (1, 1)
    told.metrics.know(KEY, hit.model_copy(update={"recoveries": [record("a")]}), {})
    assert told.value("chaos_active", **labels) == 0
    assert told.value("chaos_active", fault="Hang", tag="CHAOS") == 0


def test_a_fault_that_lasts_is_active_for_its_duration_and_one_that_nothing_fails_of_for_a_minute() -> None:
    told = Told()
    spec = {"chaos": [{"name": "a", "durationSeconds": 15}, "no object", {"name": 5, "durationSeconds": "x"}]}
    for fault, until in (("SlowRank", 1005.0), ("NaN", 1050.0)):
        told.metrics.know(KEY, TrainingJobStatus(injected=[injected(fault)]), spec)
        for told.now, value in ((until - 0.1, 1), (until + 0.1, 0)):
            assert told.value("chaos_active", fault=fault, tag="CHAOS") == value
