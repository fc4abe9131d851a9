"""What has happened, written down before anything follows from it."""

from capstan_operator.api.benchmark_status import BenchmarkStatus, RepeatStatus, RunningTrialStatus, TrialStatus
from capstan_operator.decide.bench.baseline import Missing
from capstan_operator.decide.bench.look import MOST_ATTEMPTS, REPORT, Look
from capstan_operator.decide.bench.outcome import Broken, Done, Underway, outcome_of
from capstan_operator.decide.bench.summary import with_summary, without_other
from capstan_operator.decide.times import rfc3339

REPEATS_KEPT = 20


def record(look: Look) -> BenchmarkStatus:
    """Status with what has ended, and which run is next; the same when nothing is new."""
    look = look.after(_revived(look))
    look = look.after(without_other(look.status, look.judged))
    look = look.after(_ended(look))
    return _finished(look.after(_begun(look)))


def _revived(look: Look) -> BenchmarkStatus:
    """One that has failed may go on once its user has suspended it: what was in the way is mended."""
    if not (look.has_failed and look.spec.suspend):
        return look.status
    return look.status.model_copy(update={"given_up": None, "finished_at": None})


def _ended(look: Look) -> BenchmarkStatus:
    status, running = look.status, look.status.running
    if running is None:
        return status
    is_due = running.trial == look.next_run
    if look.spec.suspend or not is_due:
        # Of a report that is to judge by something else meanwhile, or a run that the user stops: no attempt is charged.
        return status.model_copy(update={"running": None})
    match outcome_of(look, running):
        case Done(job_uid, summary):
            done = status.model_copy(update={"running": None})
            if summary is not None:
                return with_summary(done, summary, look.child(running.trial, running.attempt), look.judged)
            return done.model_copy(update={"trials": [*status.trials, _trial(look, running, job_uid)]})
        case Broken() as broken:
            return _failed(look, running, broken)
        case Underway(uid) if uid is not None and running.uid is None:
            # Its time counts from here: what it had to wait for is not its fault.
            known = running.model_copy(update={"uid": uid, "started_at": rfc3339(look.now)})
            return status.model_copy(update={"running": known})
        case _:
            return status


def _trial(look: Look, running: RunningTrialStatus, job_uid: str | None) -> TrialStatus:
    trial = look.current
    assert trial is not None
    return TrialStatus(
        trial=trial.name, arm=trial.arm, case=trial.case.text or None, attempt=running.attempt, uid=job_uid
    )


def _failed(look: Look, running: RunningTrialStatus, broken: Broken) -> BenchmarkStatus:
    status = look.status
    repeat = RepeatStatus(trial=running.trial, attempt=running.attempt, reason=broken.reason)
    is_given_up = broken.is_final or running.attempt >= MOST_ATTEMPTS
    update = {
        "running": None if is_given_up else _attempt(look, running.trial, running.attempt + 1),
        "repeats": [*status.repeats, repeat][-REPEATS_KEPT:],
        "repeated": status.repeated + (0 if is_given_up else 1),
        "given_up": running.trial if is_given_up else status.given_up,
    }
    return status.model_copy(update=update)


def _begun(look: Look) -> BenchmarkStatus:
    """The run that is due, if nothing keeps it from being begun."""
    status, due = look.status, look.next_run
    is_blocked = isinstance(look.standard, Missing) and (look.is_measured or not status.trials)
    if status.running is not None or due is None or look.spec.suspend or is_blocked:
        return status
    update = {
        "running": _attempt(look, due, 1 + look.failures_of(due)),
        "plan": status.plan or look.digest,
        "started_at": status.started_at or rfc3339(look.now),
        "given_up": None,
    }
    if look.is_measured:
        update |= {"reports": int(due.removeprefix(f"{REPORT}-")), "judging": look.judged}
    return status.model_copy(update=update)


def _attempt(look: Look, name: str, attempt: int) -> RunningTrialStatus:
    trial = next((trial for trial in look.trials if trial.name == name), None)
    case = (trial.case.text or None) if trial else None
    return RunningTrialStatus(trial=name, case=case, attempt=attempt, started_at=rfc3339(look.now))


def _finished(look: Look) -> BenchmarkStatus:
    """When it ended; while another report is made, when it ended before."""
    status = look.status
    is_new = status.finished_at is None or status.running != look.seen.benchmark.status.running
    if not look.is_over or not is_new:
        return status
    return status.model_copy(update={"finished_at": rfc3339(look.now)})
