"""Whether a gate can be reached at all: so many runs can show a difference in only so many figures at once."""

import math
from collections.abc import Callable

from capstan_operator.api.benchmark import BenchmarkSpec, Gate
from capstan_operator.api.benchmark_rules import FEWEST_TO_JUDGE
from capstan_operator.decide.bench.cases import cases_of
from capstan_runtime.contract.judged import JUDGED, OF_AN_OBJECTIVE
from capstan_runtime.contract.sizes import size_bytes, sweep

_OF_CHECKPOINTS = 3
"""Figures that are judged: saving, how long that holds up training, and restoring."""
_DERIVED = ("speedup", "efficiency")
_ONCE = ("sustained_requests_per_second",)
"""Of a service, the only figure that is not told for each rate."""


def gate_problem(spec: BenchmarkSpec, baseline_repetitions: int | None = None) -> str | None:
    """Why `spec.gate` could call no difference one, however large, in `field: value, rule; fix`; None: it could, or
    there is none.

    Mann and Whitney's test cannot reach a smaller p than 2 / C(n + m, n) with n runs against m, and Holm multiplies the
    smallest of k by k. Wilcoxon's, for pairs, reaches no smaller one. `baseline_repetitions` None: as many as here.
    """
    gate = spec.gate
    if gate is None:
        return None
    judged, ours = count_judged(spec), spec.repetitions
    theirs = ours if baseline_repetitions is None else baseline_repetitions
    if _can_show(judged, ours, theirs, gate):
        return None
    figures = "1 figure" if judged == 1 else f"{judged} figures at once"
    if theirs < ours and _can_show(judged, ours, ours, gate):
        return (
            f"gate: {ours} runs against the {theirs} of the baseline can show no difference in {figures} at confidence "
            f"{gate.confidence}; give the baseline {_needed(judged, gate)} or more, or name fewer in gate.metrics"
        )
    return (
        f"repetitions: {ours} can show no difference in {figures} at gate.confidence {gate.confidence}, however large "
        f"it is; raise repetitions to {_needed(judged, gate)}, or name fewer in gate.metrics"
    )


def metrics_problem(spec: BenchmarkSpec) -> str | None:
    """Why `spec.gate.metrics` cannot be judged, None: as far as the spec tells, they can."""
    serving = spec.workload.serving
    left_out = OF_AN_OBJECTIVE if serving is not None and serving.objective is None else ()
    known = [name for name in JUDGED[spec.workload.kind] if name not in left_out]
    unknown = [name for name in (spec.gate.metrics if spec.gate else ()) if name not in known]
    if not unknown:
        return None
    return (
        f"gate.metrics: {', '.join(unknown)} would not be measured by this {spec.workload.kind}; choose from "
        f"{', '.join(known)}"
    )


def count_judged(spec: BenchmarkSpec) -> int:
    """Figures that are judged together: all headline figures, or all those that gate.metrics names, at each place where
    one is measured. Of names at least so many: there are some that only a run can know."""
    headlines, of_name = _COUNTS[spec.workload.kind](spec)
    names = spec.gate.metrics if spec.gate else []
    return sum(of_name(name) for name in names) if names else headlines


def _can_show(judged: int, ours: int, theirs: int, gate: Gate) -> bool:
    return 2 * judged / math.comb(ours + theirs, ours) <= 1 - gate.confidence


def _needed(judged: int, gate: Gate) -> int:
    """Repetitions of both."""
    repetitions = FEWEST_TO_JUDGE
    while not _can_show(judged, repetitions, repetitions, gate):
        repetitions += 1
    return repetitions


_Count = tuple[int, Callable[[str], int]]
"""Headline figures, and how many figures one name stands for."""


def _training(spec: BenchmarkSpec) -> _Count:
    cases = len(cases_of(spec))
    return cases, lambda _: cases


def _scaling(spec: BenchmarkSpec) -> _Count:
    """Throughput of each case, and efficiency of all that have more than one worker."""
    labels = [dict(case.labels) for case in cases_of(spec)]
    derived = sum(case["workers"] != "1" for case in labels)
    return len(labels) + derived, lambda name: derived if name in _DERIVED else len(labels)


def _scaling_law(spec: BenchmarkSpec) -> _Count:
    """Throughput and loss of each run of the grid."""
    cases = len(cases_of(spec))
    return 2 * cases, lambda _: cases


def _inference(spec: BenchmarkSpec) -> _Count:
    work = spec.workload.inference
    assert work is not None
    sizes = len(work.batch_sizes)
    return sizes, lambda _: sizes


def _serving(spec: BenchmarkSpec) -> _Count:
    """A rate, and a latency."""
    work = spec.workload.serving
    assert work is not None
    rates = len(work.rates)
    return 2, lambda name: 1 if name in _ONCE else rates


def _collectives(spec: BenchmarkSpec) -> _Count:
    """Bandwidth of each operation at the largest size; of a name, at each size."""
    work = spec.workload.collectives
    assert work is not None
    operations = len(work.operations)
    sizes = len(sweep(size_bytes(work.smallest), size_bytes(work.largest), work.factor, work.workers))
    return operations, lambda _: operations * sizes


def _roofline(spec: BenchmarkSpec) -> _Count:
    """The peak of each type of numbers, and the bandwidth of memory."""
    work = spec.workload.roofline
    assert work is not None
    return len(work.dtypes) + 1, lambda _: 1


_COUNTS: dict[str, Callable[[BenchmarkSpec], _Count]] = {
    "training": _training,
    "inference": _inference,
    "serving": _serving,
    "scaling": _scaling,
    "collectives": _collectives,
    "roofline": _roofline,
    "scalingLaw": _scaling_law,
    "checkpoint": lambda _: (_OF_CHECKPOINTS, lambda _: 1),
    "controlPlane": lambda _: (1, lambda _: 1),
}
