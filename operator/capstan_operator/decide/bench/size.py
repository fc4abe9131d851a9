"""Whether the report can be told all that it must know: asked before the first run, since it is made after the last."""

from capstan_operator.api.benchmark_status import RepeatStatus, TrialStatus
from capstan_operator.decide.bench.look import Look
from capstan_operator.decide.bench.outcome import REASON_LENGTH
from capstan_operator.decide.bench.record import REPEATS_KEPT
from capstan_operator.decide.bench.tasks import report_task

MOST_TASK_BYTES = 120 * 2**10
"""Linux starts no process with a variable of more than 128 KiB, its name included. The rest is left for another gate or
baseline, which may come when all was measured."""
_LONGEST_UID = "0" * 36
_LONGEST_REASON = "\U0010ffff" * REASON_LENGTH
_LATEST_ATTEMPT = 99


def report_problem(look: Look) -> str | None:
    """Why the report could not be started, in `field: value, rule; fix`; None: it can, whatever becomes of the runs."""
    size = len(report_task(_worst(look)).model_dump_json(by_alias=True, exclude_none=True).encode())
    if size <= MOST_TASK_BYTES:
        return None
    return (
        f"spec: the report is told all of it and what became of {len(look.trials)} runs, in up to {size} bytes, and "
        f"{MOST_TASK_BYTES} are the most; shorten spec by {size - MOST_TASK_BYTES} bytes, or choose fewer repetitions"
    )


def _worst(look: Look) -> Look:
    """As it is when every run was repeated, and each failure said as much as is kept of it."""
    uid = _LONGEST_UID if look.spec.runs_jobs else None
    trials = [TrialStatus(trial=one.name, arm=one.arm, attempt=_LATEST_ATTEMPT, uid=uid) for one in look.trials]
    repeat = RepeatStatus(trial=look.trials[-1].name, attempt=_LATEST_ATTEMPT, reason=_LONGEST_REASON)
    return look.after(look.status.model_copy(update={"trials": trials, "repeats": [repeat] * REPEATS_KEPT}))
