"""Numbers on status are for people: six significant digits of what the report found."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from capstan_operator.api.benchmark_status import BenchmarkStatus
from capstan_operator.decide.bench.summary import with_summary
from capstan_runtime.contract.benchmark import Comparison, Figure, Summary
from tests.support.benchmarks import summary

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


def status_of(value: float) -> BenchmarkStatus:
    figure = Figure(metric="a", unit="s", better="lower", n=5, median=value, low=value, high=value)
    comparison = Comparison(
        metric="a",
        unit="s",
        baseline=value,
        candidate=value,
        effect_percent=value,
        low_percent=value,
        high_percent=value,
        p_value=value,
        verdict="Passed",
        reason="",
    )
    told = Summary.model_validate_json(summary("Passed"), by_alias=True, by_name=False)
    told = told.model_copy(update={"figures": (figure,), "comparisons": (comparison,)})
    return with_summary(BenchmarkStatus(), told, "report", "judged")


def test_all_numbers_of_status_have_six_digits() -> None:
    status = status_of(-0.012345678901234567)
    (figure,), (comparison,) = status.figures, status.comparisons
    assert [figure.median, figure.low, figure.high] == [-0.0123457] * 3
    told = comparison.model_dump()
    assert {value for value in told.values() if isinstance(value, float)} == {-0.0123457}
    assert "5678901" not in json.dumps(status.document())


@given(NUMBERS, NUMBERS)
def test_an_interval_stays_one(one: float, other: float) -> None:
    low, high = (status_of(value).figures[0].median for value in sorted((one, other)))
    assert low <= high
    assert abs(low - min(one, other)) <= 5e-6 * abs(min(one, other)) + 5e-324
