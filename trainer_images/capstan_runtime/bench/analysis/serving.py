"""What a ladder of rates says in one line."""

from typing import Any

from capstan_runtime.bench.analysis.collect import Trials
from capstan_runtime.bench.result import Series
from capstan_runtime.contract import words

SUSTAINED = "sustained_requests_per_second"


def derive(series: tuple[Series, ...], trials: Trials, confidence: float, seed: int) -> dict[str, Any]:
    """`headline` where all trials ended at the same rung: rungs are steps, so that there was no spread says nothing,
    and the end of the ladder is no limit of the service. Else, and without an objective, nothing."""
    kept = {value for one in series if one.metric == SUSTAINED and one.is_shown_first for value in one.values}
    rates = sorted({float(one.labels["rate"]) for one in series if "rate" in one.labels})
    if len(kept) != 1 or not rates:
        return {}
    (rate,) = kept
    if rate == 0:
        return {"headline": f"not even {_told(rates[0])} kept"}
    missed = next((words.number(above) for above in rates if above > rate), None)
    return {"headline": f"at least {_told(rate)} kept" if missed is None else f"{_told(rate)} kept, {missed} not"}


def _told(rate: float) -> str:
    return words.quantity(rate, "requests/s")
