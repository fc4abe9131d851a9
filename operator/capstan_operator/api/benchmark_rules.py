"""The rules of a Benchmark's spec as CEL, for `kubectl apply`: twins of the validators in `benchmark.py`."""

import math

from capstan_runtime.contract.reference import REFERENCE_ROWS, names_for

FEWEST_TO_JUDGE = 5
"""Repetitions. Mann-Whitney cannot reach p < 0.05 below 4 against 4, and 5 against 5 leaves room for one outlier."""
_CHANCES = tuple(math.comb(2 * runs, runs) / 2 for runs in range(FEWEST_TO_JUDGE, 13))
"""One over the smallest p that Mann-Whitney can reach with so many runs on either side, from FEWEST_TO_JUDGE on.
More of them reach whatever anybody may want."""


def repetitions_for(confidence: float) -> int:
    """The fewest with which a gate of that confidence could call one figure different, by `_CHANCES`."""
    return FEWEST_TO_JUDGE + sum((1 - confidence) * chance < 1 for chance in _CHANCES)


HAS_USER, HAS_QUERY = "^https?://[^/?#]*@", "[?#]"
USER_IN_URL = (
    "url: holds a user, and a spec is no place for secrets; put credentials into scenario[].headers as $(NAME)"
)
QUERY_IN_URL = "has a query or a fragment, which belong to one request; put the query into scenario[].path"
URL_RULES = (
    (f"!has(self.url) || !self.url.matches('{HAS_USER}')", f"'{USER_IN_URL}'"),
    (f"!has(self.url) || !self.url.matches('{HAS_QUERY}')", f"'url: ' + self.url + ' {QUERY_IN_URL}'"),
)
"""Of workload.serving."""

PLANNED = {
    "inference": (
        "batchSizes x (seconds + warmupSeconds)",
        "double(size(self.workload.inference.batchSizes)) * (self.workload.inference.seconds + "
        "self.workload.inference.warmupSeconds)",
    ),
    "serving": (
        "rates x seconds + warmupSeconds",
        "double(size(self.workload.serving.rates)) * self.workload.serving.seconds + "
        "self.workload.serving.warmupSeconds",
    ),
    "roofline": (
        "dtypes x matrixSizes x seconds",
        "double(size(self.workload.roofline.dtypes) * size(self.workload.roofline.matrixSizes)) * "
        "self.workload.roofline.seconds",
    ),
}
"""What a run takes at the least, in words and in CEL, of the workloads that measure for a given time."""

_RUNS_JOBS = "has(self.workload.training) || has(self.workload.scaling)"
_RUNS_GRID = "(has(self.workload.scalingLaw) && has(self.workload.scalingLaw.grid))"
_ONCE = "(has(self.workload.scalingLaw) && !has(self.workload.scalingLaw.grid))"
NEEDS_JOB = "job: is missing, and this workload runs TrainingJobs; add the job to run"
NO_JOB = "job: is run by no part of this workload; remove it"
NEEDS_BASELINE = "gate: compares with a baseline, and there is none; add spec.baseline, or remove gate"
NOT_REPEATED = "gate: this scalingLaw runs nothing that could be repeated; remove gate, or use scalingLaw.grid"
NO_REFERENCE = "baseline.reference: a reference row is never a gate, only shown beside; remove gate"
_CEL_CHANCES = f"[{', '.join(map(str, _CHANCES))}]"
_BELOW_CHANCE = (
    f"!has(self.gate) || self.repetitions < {FEWEST_TO_JUDGE} || self.repetitions >= {FEWEST_TO_JUDGE + len(_CHANCES)} "
    f"|| (1.0 - self.gate.confidence) * {_CEL_CHANCES}[self.repetitions - {FEWEST_TO_JUDGE}] >= 1.0",
    "'repetitions: ' + string(self.repetitions) + ' cannot reach gate.confidence ' + string(self.gate.confidence) + "
    "', however large a difference is; raise repetitions to ' + "
    f"string({FEWEST_TO_JUDGE} + {_CEL_CHANCES}.filter(chance, (1.0 - self.gate.confidence) * chance < 1.0).size()) + "
    "', or lower gate.confidence'",
)
WINDOW_FIX = "lower warmupSteps or job.training.logEverySteps, or raise job.training.steps"
_EVERY, _STEPS = "self.job.training.logEverySteps", "self.job.training.steps"


def _leaves_a_window(workload: str) -> tuple[str, str]:
    warmup = f"self.workload.{workload}.warmupSteps"
    return (
        f"!has(self.workload.{workload}) || !has(self.job) || !has({_STEPS}) || "
        f"({warmup} + {_EVERY} - 1) / {_EVERY} * {_EVERY} + {_EVERY} <= {_STEPS}",
        f"'workload.{workload}.warmupSteps: ' + string({warmup}) + ' leaves no whole window of "
        f"job.training.logEverySteps ' + string({_EVERY}) + ' of the ' + string({_STEPS}) + ' steps, so nothing would "
        f"be measured; {WINDOW_FIX}'",
    )


_FROZEN = ("workload", "repetitions", "seed", "results", "pods")


def rows_of(workload: str) -> str:
    """A workload, and what to do about a reference that is none of its rows."""
    known = names_for(workload)
    return f"{workload}; choose one of {', '.join(known)}" if known else _NO_ROWS


_NO_ROWS = "this workload; remove it: there is none"
_WITH_ROWS = tuple(dict.fromkeys(row.workload for row in REFERENCE_ROWS.values()))
_KNOWN_ROW = " || ".join(
    f"(has(self.workload.{workload}) && self.baseline.reference in {names_for(workload)})" for workload in _WITH_ROWS
)
_ROWS = " : ".join(f"has(self.workload.{workload}) ? '{rows_of(workload)}'" for workload in _WITH_ROWS)

RULES = (
    (f"!({_RUNS_JOBS} || {_RUNS_GRID}) || has(self.job)", f"'{NEEDS_JOB}'"),
    (f"({_RUNS_JOBS} || {_RUNS_GRID}) || !has(self.job)", f"'{NO_JOB}'"),
    _leaves_a_window("training"),
    _leaves_a_window("scaling"),
    ("!has(self.gate) || has(self.baseline)", f"'{NEEDS_BASELINE}'"),
    ("!has(self.gate) || !has(self.baseline) || !has(self.baseline.reference)", f"'{NO_REFERENCE}'"),
    (f"!has(self.gate) || !{_ONCE}", f"'{NOT_REPEATED}'"),
    (
        f"!has(self.gate) || self.repetitions >= {FEWEST_TO_JUDGE}",
        f"'repetitions: ' + string(self.repetitions) + ' cannot be judged; a gate needs {FEWEST_TO_JUDGE} or more: "
        "raise repetitions, or remove gate'",
    ),
    _BELOW_CHANCE,
    *(
        (
            f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})",
            f"'{field}: cannot change after the benchmark was created; create one with a new name'",
        )
        for field in (*_FROZEN, "job")
    ),
    (
        f"!has(self.baseline) || !has(self.baseline.reference) || {_KNOWN_ROW}",
        f"'baseline.reference: ' + self.baseline.reference + ' is no reference row of ' + ({_ROWS} : '{_NO_ROWS}')",
    ),
    *(
        (
            f"!has(self.workload.{workload}) || {planned} <= double(self.trialDeadlineSeconds)",
            f"'trialDeadlineSeconds: ' + string(self.trialDeadlineSeconds) + ' cannot hold the ' + string({planned}) + "
            f"' s that {workload} measures in one run, {words}; raise it, or lower those'",
        )
        for workload, (words, planned) in PLANNED.items()
    ),
)
"""Of the spec as a whole."""
