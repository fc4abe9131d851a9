"""How it is told: phase, reason, message, progress and conditions, all of them made of what is on record."""

from enum import StrEnum

from capstan_operator.api.benchmark_status import BenchmarkStatus, ProgressStatus
from capstan_operator.api.meta import BenchmarkCondition
from capstan_operator.decide.bench.baseline import Missing
from capstan_operator.decide.bench.look import MOST_ATTEMPTS, REPORT, Look
from capstan_operator.decide.bench.outcome import TROUBLES, Underway
from capstan_operator.decide.bench.reasons import BenchReason
from capstan_operator.decide.conditions import find, is_true, put_condition
from capstan_operator.observe_benchmark import ObservedBenchmark

_AGAIN = "set spec.suspend to true and to false again for one more attempt"
_NEW = "create a Benchmark with a new name"
_CONFIGURED = {
    True: f"change spec.baseline or spec.gate, which tries the report again, or {_NEW}",
    False: f"what is run cannot be changed, so {_NEW}",
}
"""What can be done about a report, and about a run, that cannot work."""
_OUTSIDE = f"where the cause is not in the spec, mend it, and {_AGAIN}"
_MET = {"Passed": True, "Improved": True, "Regressed": False, "Inconclusive": None}


def describe(look: Look, underway: Underway) -> BenchmarkStatus:
    """Status of a Benchmark with a valid spec; `underway` says what the run that is due waits for."""
    phase, reason, message = _headline(look, underway)
    done, total = len(look.status.trials), len(look.trials)
    status = look.status.model_copy(
        update={
            "observed_generation": look.seen.benchmark.generation,
            "workload": look.spec.workload.kind,
            "phase": phase,
            "reason": reason.value,
            "message": message,
            "progress": ProgressStatus(done=done, total=total, summary=f"{done}/{total}"),
        }
    )
    status = _put(look, status, BenchmarkCondition.ACCEPTED, True, BenchReason.VALID, "the spec is valid")
    is_held_up = reason in TROUBLES or isinstance(_obstacle(look), Missing)
    is_progressing = phase in ("Running", "Reporting") and not is_held_up
    said = _SAID.get(reason, message)
    status = _put(look, status, BenchmarkCondition.PROGRESSING, is_progressing, reason, said)
    return _put_verdict(look, _put_end(look, status, reason, message), reason, said)


def describe_waiting(
    benchmark: ObservedBenchmark, workload: str, missing: Missing, now: float, *, is_suspended: bool
) -> BenchmarkStatus:
    """Status of one whose runs cannot even be planned, because the baseline that is to be run again is not there."""
    old = benchmark.status
    phase = "Suspended" if is_suspended else "Running" if old.trials or old.running else "Pending"
    status = old.model_copy(
        update={
            "observed_generation": benchmark.generation,
            "workload": workload,
            "phase": phase,
            "reason": missing.reason.value,
            "message": missing.message,
        }
    )
    accepted = BenchmarkCondition.ACCEPTED
    status = put_condition(status, accepted, True, BenchReason.VALID, "the spec is valid", now, benchmark.generation)
    kind = BenchmarkCondition.PROGRESSING
    status = put_condition(status, kind, False, missing.reason, missing.message, now, benchmark.generation)
    return _put_unjudged(benchmark, status, missing.reason, missing.message, now)


def describe_refused(
    benchmark: ObservedBenchmark, reason: BenchReason, problems: tuple[str, ...], now: float
) -> BenchmarkStatus:
    """Status of one whose spec is refused: what was measured stays."""
    message = "\n".join(problems)
    status = benchmark.status.model_copy(
        update={
            "observed_generation": benchmark.generation,
            "phase": "Invalid",
            "reason": reason.value,
            "message": message,
        }
    )
    generation = benchmark.generation
    status = put_condition(status, BenchmarkCondition.ACCEPTED, False, reason, message, now, generation)
    said = "nothing is done until the spec is valid"
    status = put_condition(status, BenchmarkCondition.PROGRESSING, False, reason, said, now, generation)
    return _put_unjudged(benchmark, status, reason, said, now)


_SAID: dict[BenchReason, str] = {
    BenchReason.MEASURING: "runs are made, one after the other",
    **dict.fromkeys(TROUBLES, "a pod does not start"),
    BenchReason.REPORTING: "all runs are finished; the report is made",
    BenchReason.SUSPENDED: "spec.suspend is true",
    BenchReason.REPORTED: "all was measured and reported",
}
"""What a condition says, which does not change with every run."""


def _headline(look: Look, underway: Underway) -> tuple[str, BenchReason, str]:
    """(phase, reason, message)."""
    status, total = look.status, len(look.trials)
    if look.has_failed:
        return "Failed", *_failure(look)
    if look.is_reported:
        verdict = f"; {status.verdict}: {status.verdict_reason}" if status.verdict else ""
        return "Succeeded", BenchReason.REPORTED, f"{status.result}{verdict}"
    if look.spec.suspend:
        done = f"{len(status.trials)} of {total} runs are finished; set spec.suspend to false to go on"
        return "Suspended", BenchReason.SUSPENDED, done
    missing = _obstacle(look)
    if isinstance(missing, Missing):
        phase = "Reporting" if look.is_measured else "Pending"
        return phase, missing.reason, missing.message
    clause = f"; {underway.waits}" if underway.waits else ""
    running = status.running
    again = f", attempt {running.attempt}" if running and running.attempt > 1 else ""
    if look.is_measured:
        reason = underway.trouble or BenchReason.REPORTING
        return "Reporting", reason, f"all {total} runs are finished; the report is made{again}{clause}"
    place = len(status.trials) + 1
    case = f" ({running.case})" if running and running.case else ""
    is_begun = bool(status.trials or status.repeats) or underway.trouble is None
    return (
        "Running" if is_begun else "Pending",
        underway.trouble or BenchReason.MEASURING,
        f"run {place} of {total}{case}{again}{clause}",
    )


def _failure(look: Look) -> tuple[BenchReason, str]:
    status = look.status
    name = status.given_up or ""
    newest = next((repeat for repeat in reversed(status.repeats) if repeat.trial == name), None)
    why = newest.reason if newest else "nothing says why"
    attempts = newest.attempt if newest else 0
    is_report = name.startswith(REPORT)
    what = "the report" if is_report else f"run {name}"
    done = f"{len(status.trials)} of {len(look.trials)} runs are finished"
    if attempts < MOST_ATTEMPTS:
        fix = f"{_CONFIGURED[is_report]}; {_OUTSIDE}"
        return BenchReason.CONFIG_ERROR, f"{what} cannot work as it is configured: {why}; {done}; {fix}"
    reason = BenchReason.REPORT_FAILED if is_report else BenchReason.ATTEMPTS_USED_UP
    return reason, f"{what} failed {attempts} times, the last time: {why}; {done}; when it is mended, {_AGAIN}"


def _obstacle(look: Look) -> Missing | None:
    """The baseline, where it is needed now and not there."""
    is_needed = look.is_measured or not look.status.trials
    is_free = look.status.running is None and not look.is_over
    return look.standard if isinstance(look.standard, Missing) and is_needed and is_free else None


def _put_end(look: Look, status: BenchmarkStatus, reason: BenchReason, message: str) -> BenchmarkStatus:
    """How it ended. What was reported stays so while it is judged anew."""
    succeeded, failed = BenchmarkCondition.SUCCEEDED, BenchmarkCondition.FAILED
    if look.has_failed:
        status = _put(look, status, failed, True, reason, message)
        if find(status, succeeded) is not None:
            status = _put(look, status, succeeded, False, reason, message)
        return status
    if status.report is not None or is_true(status, succeeded):
        status = _put(look, status, succeeded, True, BenchReason.REPORTED, _SAID[BenchReason.REPORTED])
    if find(status, failed) is not None:
        status = _put(look, status, failed, False, BenchReason.REPORTED, "it goes on")
    return status


def _put_verdict(look: Look, status: BenchmarkStatus, reason: BenchReason, message: str) -> BenchmarkStatus:
    """Of the baseline and gate that the spec has now; Unknown while there is no report that judges by them."""
    kind = BenchmarkCondition.NOT_REGRESSED
    if status.verdict is None and not look.is_reported:
        return _put_unjudged(look.seen.benchmark, status, reason, message, look.now)
    if status.verdict is None:
        others = [condition for condition in status.conditions if condition.type != kind]
        return status.model_copy(update={"conditions": others})
    verdict = BenchReason(status.verdict)
    return _put(look, status, kind, _MET[status.verdict], verdict, status.verdict_reason or status.verdict)


def _put_unjudged(
    benchmark: ObservedBenchmark, status: BenchmarkStatus, reason: BenchReason, message: str, now: float
) -> BenchmarkStatus:
    """That nothing is known of regressions any more, where something was."""
    kind = BenchmarkCondition.NOT_REGRESSED
    if status.verdict is not None or find(status, kind) is None:
        return status
    return put_condition(status, kind, None, reason, message, now, benchmark.generation)


def _put(
    look: Look, status: BenchmarkStatus, kind: BenchmarkCondition, is_met: bool | None, reason: StrEnum, message: str
) -> BenchmarkStatus:
    return put_condition(status, kind, is_met, reason, message, look.now, look.seen.benchmark.generation)
