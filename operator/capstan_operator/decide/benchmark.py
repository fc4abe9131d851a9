"""The decision for a Benchmark, as a table of contents. Each step is a file of `bench/`.

observed ─▶ spec, baseline ─▶ plan of runs ─▶ record what happened ─▶ children follow ─▶ describe
"""

from capstan_operator.api.benchmark import BenchmarkSpec
from capstan_operator.api.benchmark_status import BenchmarkStatus
from capstan_operator.decide.bench.baseline import Missing, Standard, find_standard
from capstan_operator.decide.bench.blueprint import read_spec
from capstan_operator.decide.bench.children import plan_children
from capstan_operator.decide.bench.describe import describe, describe_refused, describe_waiting
from capstan_operator.decide.bench.events import tell
from capstan_operator.decide.bench.look import Look
from capstan_operator.decide.bench.outcome import Underway, outcome_of
from capstan_operator.decide.bench.plan import plan_digest, plan_trials
from capstan_operator.decide.bench.reasons import BenchReason
from capstan_operator.decide.bench.record import record
from capstan_operator.decide.bench.types import BenchDecision
from capstan_operator.decide.blueprint import Refusal
from capstan_operator.observe import ObservedBenching

LEAST_WAIT_SECONDS = 0.05
_CHANGED = (
    "spec.baseline: the runs that were made so far had another one beside them, or none; put it back, or create a new "
    "Benchmark with a new name"
)


def decide_benchmark(observed: ObservedBenching, now: float) -> BenchDecision:
    """All that follows from one look at a Benchmark at `now` (seconds since 1970).

    Pure, and never raises for what a user wrote. A look that adds to the record writes the record and nothing else;
    the next one, at once, makes children follow.
    """
    benchmark = observed.benchmark
    old = benchmark.status
    if benchmark.is_deleting:
        # The garbage collector removes the children by their owner; all that we could make now would be in its way.
        return BenchDecision(status=old)
    spec = read_spec(benchmark, observed.settings)
    if isinstance(spec, Refusal):
        return _only_said(old, describe_refused(benchmark, BenchReason.INVALID_SPEC, spec.problems, now))
    standard = find_standard(observed, spec)
    if isinstance(standard, Missing) and _is_rerun(spec):
        waiting = describe_waiting(benchmark, spec.workload.kind, standard, now, is_suspended=spec.suspend)
        return _only_said(old, waiting)
    look = _look(observed, spec, standard, now)
    if old.plan is not None and old.plan != look.digest:
        return _only_said(old, describe_refused(benchmark, BenchReason.PLAN_CHANGED, (_CHANGED,), now))
    recorded = look.after(record(look))
    if recorded.status != old:
        status = describe(recorded, None)
        return BenchDecision(status=status, events=tell(old, status), requeue_after=0.0)
    plan = plan_children(look)
    status = describe(look, plan.waits or _waits(look))
    after = max(plan.requeue_after, LEAST_WAIT_SECONDS) if plan.requeue_after is not None else None
    return BenchDecision(
        status=status, delete=plan.delete, create=plan.create, events=tell(old, status), requeue_after=after
    )


def _look(observed: ObservedBenching, spec: BenchmarkSpec, standard: Standard | Missing, now: float) -> Look:
    rerun = standard.rerun if isinstance(standard, Standard) else None
    trials = plan_trials(spec, rerun)
    return Look(observed, spec, standard, trials, plan_digest(trials, rerun), observed.benchmark.status, now)


def _is_rerun(spec: BenchmarkSpec) -> bool:
    baseline = spec.baseline.benchmark if spec.baseline else None
    return baseline is not None and baseline.rerun


def _waits(look: Look) -> str | None:
    """What the run under way waits for, in a clause."""
    running = look.status.running
    outcome = outcome_of(look, running) if running else None
    return outcome.waits if isinstance(outcome, Underway) else None


def _only_said(old: BenchmarkStatus, status: BenchmarkStatus) -> BenchDecision:
    return BenchDecision(status=status, events=tell(old, status))
