"""What is worth an event: that it began, what had to be repeated, how it ended, and what that means."""

from collections.abc import Iterator

from capstan_operator.api.benchmark_status import BenchmarkStatus
from capstan_operator.api.meta import BenchmarkCondition
from capstan_operator.decide.bench.look import REPORT
from capstan_operator.decide.bench.outcome import TROUBLES
from capstan_operator.decide.bench.reasons import BenchReason
from capstan_operator.decide.conditions import find, is_true
from capstan_operator.decide.types import EventNote

_WAITS = (BenchReason.BASELINE_NOT_FOUND, BenchReason.BASELINE_NOT_READY, BenchReason.BASELINE_UNFIT)


def tell(old: BenchmarkStatus, new: BenchmarkStatus) -> tuple[EventNote, ...]:
    """Of a status that follows another, what somebody should hear of."""
    return (*_of_acceptance(old, new), *_of_waiting(old, new), *_of_runs(old, new), *_of_the_end(old, new))


def _of_acceptance(old: BenchmarkStatus, new: BenchmarkStatus) -> Iterator[EventNote]:
    before, after = (find(status, BenchmarkCondition.ACCEPTED) for status in (old, new))
    if after is None or after.status == "True":
        return
    if before is None or (before.status, before.message) != (after.status, after.message):
        yield EventNote("Warning", after.reason, after.message)


def _of_waiting(old: BenchmarkStatus, new: BenchmarkStatus) -> Iterator[EventNote]:
    if new.reason in _WAITS and (old.reason, old.message) != (new.reason, new.message):
        is_coming = new.reason == BenchReason.BASELINE_NOT_READY
        yield EventNote("Normal" if is_coming else "Warning", new.reason, new.message)
    if new.reason in TROUBLES and old.reason != new.reason:
        yield EventNote("Warning", new.reason, new.message)
    if (old.phase == "Suspended") != (new.phase == "Suspended") and old.observed_generation is not None:
        reason = "Suspended" if new.phase == "Suspended" else "Resumed"
        yield EventNote("Normal", reason, new.message)


def _of_runs(old: BenchmarkStatus, new: BenchmarkStatus) -> Iterator[EventNote]:
    if old.started_at is None and new.started_at is not None:
        total = new.progress.total
        runs = "one run" if total == 1 else f"{total} runs, one after the other"
        yield EventNote("Normal", "Begun", f"{new.workload}: {runs}")
    for repeat in new.repeats:
        if repeat not in old.repeats and repeat.trial != new.given_up:
            what = "the report" if repeat.trial.startswith(REPORT) else f"run {repeat.trial}"
            told = f"attempt {repeat.attempt} of {what} failed and is repeated: {repeat.reason}"
            yield EventNote("Warning", "Repeated", told)


def _of_the_end(old: BenchmarkStatus, new: BenchmarkStatus) -> Iterator[EventNote]:
    if is_true(new, BenchmarkCondition.FAILED) and not is_true(old, BenchmarkCondition.FAILED):
        yield EventNote("Warning", new.reason, new.message)
    if new.report is None or new.report == old.report:
        return
    yield EventNote("Normal", BenchReason.REPORTED, f"{new.result}; kubectl logs {new.report.log}")
    if new.verdict is not None:
        is_bad = new.verdict == BenchReason.REGRESSED.value
        yield EventNote("Warning" if is_bad else "Normal", new.verdict, new.verdict_reason or new.verdict)
