"""What a ladder of rates says in one line."""

from typing import Any

import pytest

from capstan_runtime.bench.analysis.collect import Trials
from capstan_runtime.bench.analysis.serving import derive
from capstan_runtime.bench.result import Series


def series(metric: str, values: tuple[float, ...], **more: Any) -> Series:
    trials = tuple(f"t{at:02d}" for at in range(len(values)))
    fields = {"metric": metric, "unit": "requests/s", "better": "higher", "arm": "candidate"}
    return Series.model_validate(fields | {"values": values, "trials": trials} | more)


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ((800.0, 800.0, 800.0), {"headline": "at least 800 requests/s kept"}),
        ((200.0, 200.0, 200.0), {"headline": "200 requests/s kept, 800 not"}),
        ((0.0, 0.0, 0.0), {"headline": "not even 50 requests/s kept"}),
        ((200.0, 800.0, 800.0), {}),
        ((), {}),
    ],
    ids=["the highest", "one below", "none", "runs that differ", "no objective"],
)
def test_what_of_a_ladder_was_kept(kept: tuple[float, ...], told: dict[str, Any]) -> None:
    rates = [series("requests_per_second", (1.0,), labels={"rate": rate}) for rate in ("50", "200", "800")]
    sustained = [series("sustained_requests_per_second", kept, is_headline=True)] if kept else []
    assert derive((*sustained, *rates), Trials((), ()), 0.95, 0) == told


def test_what_the_generator_cut_off_is_no_headline() -> None:
    rates = [series("requests_per_second", (1.0,), labels={"rate": "50"})]
    cut = series("sustained_requests_per_second", (50.0, 50.0), is_headline=True, is_withdrawn=True)
    assert derive((cut, *rates), Trials((), ()), 0.95, 0) == {}
