"""Whatever numbers a result holds, its reports are made: hours of measurement are not lost to an axis."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capstan_runtime.bench.reports import comparison, markdown
from capstan_runtime.bench.reports.html import page
from capstan_runtime.bench.reports.prometheus import exposition
from capstan_runtime.bench.result import (
    QUANTILE_PERCENTS,
    Baseline,
    BenchmarkResult,
    Ceiling,
    CollectiveFit,
    Distribution,
    Dot,
    Law,
    LawFit,
    LawParameter,
    ScalingRow,
    Series,
)
from capstan_runtime.contract.base import Record
from capstan_runtime.contract.benchmark import Comparison, Figure, GateTask
from capstan_runtime.contract.reference import REFERENCE_ROWS
from tests.support.bench_maker import CPU
from tests.support.bench_results import RESULTS

NUMBER = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 5e-324, 1.7e308, -1.7e308, float("nan"), float("inf"), float("-inf")]),
    st.floats(1e-9, 1e15),
    st.floats(),
)
METRIC = st.sampled_from(
    ["samples_per_second", "latency_p99_seconds", "requests_per_second", "seconds", "bus_bandwidth_bytes_per_second"]
)
UNIT = st.sampled_from(["s", "B/s", "FLOP/s", "samples/s", "failed/request", "x", "1", ""])
BETTER = st.sampled_from(["higher", "lower", "neither"])
VERDICT = st.sampled_from(["Passed", "Regressed", "Improved", "Inconclusive"])
LABELS = st.dictionaries(
    st.sampled_from(["batchSize", "rate", "size", "operation", "workers", "mode"]),
    st.sampled_from(["1", "2", "64", "1e9", "-3", "0", "64KiB", "allReduce", "strong", ""]),
    max_size=3,
)
FEW = {"max_size": 4}


def built(model: type[Record], **fields: st.SearchStrategy[object]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(fields).map(lambda given: model(**given))


LOCATED = {"metric": METRIC, "labels": LABELS, "unit": UNIT}
FIGURE = built(
    Figure,
    **LOCATED,
    better=BETTER,
    n=st.integers(0, 9),
    median=NUMBER,
    low=NUMBER,
    high=NUMBER,
    is_headline=st.booleans(),
)
SERIES = built(
    Series,
    **LOCATED,
    better=BETTER,
    arm=st.sampled_from(["candidate", "baseline"]),
    values=st.lists(NUMBER, **FEW).map(tuple),
    trials=st.just(()),
)
DISTRIBUTION = built(
    Distribution,
    **LOCATED,
    count=st.integers(0, 10**6),
    quantiles=st.lists(NUMBER, min_size=3, max_size=3).map(
        lambda few: (few * len(QUANTILE_PERCENTS))[: len(QUANTILE_PERCENTS)]
    ),
)
COMPARISON = built(
    Comparison,
    **LOCATED,
    baseline=NUMBER,
    candidate=NUMBER,
    effect_percent=NUMBER,
    low_percent=NUMBER,
    high_percent=NUMBER,
    p_value=NUMBER,
    verdict=VERDICT,
    reason=st.just("because"),
)
SCALING = built(
    ScalingRow,
    mode=st.sampled_from(["strong", "weak"]),
    workers=st.integers(1, 2048),
    **dict.fromkeys(
        [
            "speedup",
            "speedup_low",
            "speedup_high",
            "efficiency",
            "efficiency_low",
            "efficiency_high",
            "serial_fraction",
        ],
        NUMBER,
    ),
)
ROOF = built(
    Ceiling,
    name=st.sampled_from(["a", "b"]),
    kind=st.sampled_from(["compute", "bandwidth"]),
    unit=st.just("B/s"),
    **dict.fromkeys(["median", "low", "high"], NUMBER),
)
DOT = built(
    Dot,
    name=st.just("model"),
    ceiling=st.sampled_from(["a", "b"]),
    bound=st.just("compute"),
    **dict.fromkeys(["intensity", "performance", "low", "high", "share"], NUMBER),
)
COLLECTIVE = built(
    CollectiveFit,
    operation=st.just("allReduce"),
    **dict.fromkeys(
        [
            "latency_seconds",
            "latency_low",
            "latency_high",
            "bandwidth_bytes_per_second",
            "bandwidth_low",
            "bandwidth_high",
        ],
        NUMBER,
    ),
)


@st.composite
def laws(draw: st.DrawFn) -> Law:
    points = draw(st.lists(st.tuples(NUMBER, NUMBER, NUMBER), max_size=9))
    residuals = draw(st.lists(NUMBER, min_size=len(points), max_size=len(points)))
    fit = LawFit(
        form="chinchilla",
        formula="L = E",
        parameters=(LawParameter(name="E", value=draw(NUMBER), low=draw(NUMBER), high=draw(NUMBER)),),
        objective=draw(NUMBER),
        gradient_norm=0.0,
        is_trusted=draw(st.booleans()),
        residuals=tuple(residuals),
    )
    return Law(points=tuple(points), fits=(fit,), held_out=((1.0, 2.0, draw(NUMBER), draw(NUMBER)),))


@st.composite
def results(draw: st.DrawFn) -> BenchmarkResult:
    return BenchmarkResult(
        name="any",
        namespace="default",
        uid="uid",
        workload=draw(st.sampled_from(list(RESULTS))),
        spec={"workload": {"serving": {"objective": {"p99Milliseconds": draw(NUMBER)}}}},
        seed=0,
        started_at=0.0,
        finished_at=1.0,
        environments=(CPU,),
        control_seconds=tuple(draw(st.lists(NUMBER, **FEW))),
        headline="any",
        reason="any",
        series=tuple(draw(st.lists(SERIES, **FEW))),
        figures=tuple(draw(st.lists(FIGURE, max_size=8))),
        distributions=tuple(draw(st.lists(DISTRIBUTION, max_size=2))),
        comparisons=tuple(draw(st.lists(COMPARISON, **FEW))),
        verdict=draw(st.none() | VERDICT),
        baseline=draw(st.none() | st.just(Baseline(kind="file", name="x", is_comparable=True))),
        reference=draw(st.none() | st.just(REFERENCE_ROWS["data-parallel-speedup"])),
        gate=draw(st.none() | st.just(GateTask(minimum_effect_percent=5, confidence=0.95))),
        scaling=tuple(draw(st.lists(SCALING, **FEW))),
        roofs=tuple(draw(st.lists(ROOF, **FEW))),
        dots=tuple(draw(st.lists(DOT, **FEW))),
        law=draw(st.none() | laws()),
        collectives=tuple(draw(st.lists(COLLECTIVE, max_size=2))),
    )


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(results())
def test_every_result_can_be_told(result: BenchmarkResult) -> None:
    assert page(result).rstrip().endswith("</html>")
    assert markdown(result).startswith(f"# {result.verdict or 'Measured'}: ")
    assert comparison(result).startswith("# ")
    assert "capstan_benchmark_info" in exposition(result)
