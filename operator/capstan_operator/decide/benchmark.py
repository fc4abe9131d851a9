"""The decision for a Benchmark, as a table of contents. Each step is a file of `bench/`.

observed ─▶ spec, baseline ─▶ plan of runs ─▶ record what happened ─▶ children follow ─▶ describe
"""

from dataclasses import replace

from capstan_operator.api.benchmark import BenchmarkSpec
from capstan_operator.build.host_path import allowing_all
from capstan_operator.decide.bench.baseline import Missing, Standard, find_standard, judged_by
from capstan_operator.decide.bench.blueprint import read_spec
from capstan_operator.decide.bench.children import plan_children
from capstan_operator.decide.bench.describe import describe, describe_refused, describe_waiting
from capstan_operator.decide.bench.events import tell
from capstan_operator.decide.bench.look import Look
from capstan_operator.decide.bench.outcome import Underway, outcome_of
from capstan_operator.decide.bench.plan import plan_digest, plan_trials, recorded_trials
from capstan_operator.decide.bench.reasons import BenchReason
from capstan_operator.decide.bench.record import record
from capstan_operator.decide.bench.size import report_problem
from capstan_operator.decide.bench.standstill import stand_still
from capstan_operator.decide.bench.summary import without_other
from capstan_operator.decide.bench.types import BenchDecision
from capstan_operator.decide.blueprint import Refusal
from capstan_operator.observe_benchmark import ObservedBenching, ObservedBenchmark

LEAST_WAIT_SECONDS = 0.05
_CHANGED = (
    "spec: the runs that were made so far were of another workload, job, pods or results.store, or had another "
    "baseline beside them, or none; put it back, or create a new Benchmark with a new name"
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
    if old.plan is not None:
        # Whatever the operator allows since: its runs are made to the end as they were planned, and no others are.
        observed = replace(observed, settings=allowing_all(observed.settings))
    spec = read_spec(benchmark, observed.settings)
    if isinstance(spec, Refusal):
        return stand_still(observed, describe_refused(benchmark, BenchReason.INVALID_SPEC, spec.problems, now), now)
    standard = find_standard(observed, spec)
    look = _look_at_the_end(observed, spec, standard, now)
    if look is None and isinstance(standard, Missing) and _is_rerun(spec):
        judged = _judged(benchmark, spec)
        waiting = describe_waiting(judged, spec.workload.kind, standard, now, is_suspended=spec.suspend)
        return stand_still(observed, waiting, now)
    look = look or _look(observed, spec, standard, now)
    if old.plan is not None and old.plan != look.digest:
        changed = describe_refused(_judged(benchmark, spec), BenchReason.PLAN_CHANGED, (_CHANGED,), now)
        return stand_still(observed, changed, now)
    problem = report_problem(look) if old.plan is None else None
    if problem is not None:
        return stand_still(observed, describe_refused(benchmark, BenchReason.INVALID_SPEC, (problem,), now), now)
    recorded = look.after(record(look))
    if recorded.status != old:
        status = describe(recorded, Underway(None))
        return BenchDecision(status=status, events=tell(old, status), requeue_after=0.0)
    plan = plan_children(look)
    underway = Underway(None, plan.waits) if plan.waits else _underway(look)
    status = describe(look, underway)
    after = max(plan.requeue_after, LEAST_WAIT_SECONDS) if plan.requeue_after is not None else None
    return BenchDecision(
        status=status, delete=plan.delete, create=plan.create, events=tell(old, status), requeue_after=after
    )


def _look_at_the_end(
    observed: ObservedBenching, spec: BenchmarkSpec, standard: Standard | Missing, now: float
) -> Look | None:
    """None: it is not over. Of what is over the plan is that on record: a baseline that is removed or made anew after
    the end changes nothing."""
    old = observed.benchmark.status
    if old.plan is None or old.running is not None:
        return None
    look = Look(observed, spec, standard, recorded_trials(old), old.plan, old, now)
    return look if look.is_over else None


def _look(observed: ObservedBenching, spec: BenchmarkSpec, standard: Standard | Missing, now: float) -> Look:
    rerun = standard.rerun if isinstance(standard, Standard) else None
    trials = plan_trials(spec, rerun)
    return Look(observed, spec, standard, trials, plan_digest(trials, spec, rerun), observed.benchmark.status, now)


def _is_rerun(spec: BenchmarkSpec) -> bool:
    baseline = spec.baseline.benchmark if spec.baseline else None
    return baseline is not None and baseline.rerun


def _underway(look: Look) -> Underway:
    """What the run under way waits for."""
    running = look.status.running
    outcome = outcome_of(look, running) if running else None
    return outcome if isinstance(outcome, Underway) else Underway(None)


def _judged(benchmark: ObservedBenchmark, spec: BenchmarkSpec) -> ObservedBenchmark:
    """`benchmark` without what was judged by another baseline or gate than that of `spec`."""
    return replace(benchmark, status=without_other(benchmark.status, judged_by(spec)))
