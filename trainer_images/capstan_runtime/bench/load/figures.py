"""What rungs say: points and notes.

A request that failed or was not answered in time took infinitely long: no percentile may get better by failing, and
where a percentile is infinite, so many failed. `error_ratio` says how many.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from capstan_runtime.bench.load.ladder import MOST_CPU_SHARE, MOST_LAG_SECONDS, Rung
from capstan_runtime.bench.measured import can_tell, percentile, point
from capstan_runtime.contract.benchmark import Point
from capstan_runtime.contract.workloads import Load, ServiceLevel

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
"""Told as far as a rung has requests."""


def load_points(load: Load, rungs: Sequence[Rung]) -> list[Point]:
    """Headline: the highest rate that keeps the objective, or without one the answers per second at the highest rate;
    and the median latency at the lowest rate, whose interval is narrow where that of a p99 of a few hundred requests is
    not. Withdrawn is what the generator limited: latencies and what follows from them by its delays, rates by its
    processor time, the highest rate by either where it ends the ladder."""
    lowest, highest = min(load.rates), max(load.rates)
    points = []
    if load.objective is not None:
        kept = highest_kept_rate(rungs, load.objective)
        points.append(
            point(
                "sustained_requests_per_second",
                "requests/s",
                "higher",
                kept,
                is_headline=True,
                is_withdrawn=_is_cut_by_generator(rungs, load.objective),
            )
        )
    for rung in rungs:
        is_rate_headline = load.objective is None and rung.rate == highest
        points += _of_rung(load, rung, is_rate_headline=is_rate_headline, is_latency_headline=rung.rate == lowest)
        if len(load.scenario) > 1:
            points += _of_kinds(load, rung)
    return points


def load_notes(load: Load, rungs: Sequence[Rung]) -> list[str]:
    """Where the generator was in the way, requests that failed, and an objective that the highest rate still keeps."""
    notes = [*_limits(rungs)]
    for rung in rungs:
        if rung.failures:
            reasons: Counter[str] = Counter()
            for (_, reason), count in rung.failures.items():
                reasons[reason] += count
            most = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
            notes.append(
                f"at {rung.name} requests/s {sum(reasons.values())} of {len(rung.latency)} requests failed ({most}); "
                "each counts as a latency without end"
            )
    if load.objective is not None and _is_cut_by_generator(rungs, load.objective):
        notes.append("the first rate that misses the objective is one of those: the service may keep up with more")
    if load.objective is not None and highest_kept_rate(rungs, load.objective) == max(load.rates):
        notes.append(f"the highest rate, {max(load.rates):.12g} requests/s, keeps the objective: the limit is above it")
    return notes


def _limits(rungs: Sequence[Rung]) -> Iterator[str]:
    busy = [rung for rung in rungs if rung.cpu_share >= MOST_CPU_SHARE]
    late = [rung for rung in rungs if rung.lag_p99 >= MOST_LAG_SECONDS and rung not in busy]
    if busy:
        most = max(rung.cpu_share for rung in busy)
        yield (
            f"at {_rates(busy)} the generator was the bottleneck: it used up to {most:.2f} of a core (limit "
            f"{MOST_CPU_SHARE:g}); no figure there is judged"
        )
    if late:
        most = 1e3 * max(rung.lag_p99 for rung in late)
        yield (
            f"at {_rates(late)} the generator was kept waiting for a core: up to {most:.1f} ms behind its schedule at "
            f"p99 (limit {1e3 * MOST_LAG_SECONDS:g} ms); latencies there hold its delay and are not judged"
        )


def _rates(rungs: Sequence[Rung]) -> str:
    return ", ".join(rung.name for rung in rungs) + " requests/s"


def highest_kept_rate(rungs: Sequence[Rung], objective: ServiceLevel) -> float:
    """Requests per second; 0 when even the lowest rate fails. A rate above one that fails does not count: it was luck,
    or a cache."""
    kept = 0.0
    for rung in sorted(rungs, key=lambda rung: rung.rate):
        if not keeps(rung, objective):
            break
        kept = rung.rate
    return kept


def _is_cut_by_generator(rungs: Sequence[Rung], objective: ServiceLevel) -> bool:
    """The ladder ends where the generator was in the way."""
    missed = [rung for rung in rungs if not keeps(rung, objective)]
    return bool(missed) and min(missed, key=lambda rung: rung.rate).is_limited_by_generator


def keeps(rung: Rung, objective: ServiceLevel) -> bool:
    """Whether a rung was served as asked; one without a request was not."""
    if not len(rung.latency):
        return False
    p99 = percentile(np.sort(rung.latency), 0.99)
    return 1e3 * p99 <= objective.p99_milliseconds and 100 * error_ratio(rung.latency) <= objective.error_percent


def error_ratio(latency: npt.NDArray[np.float64]) -> float:
    return float(np.isinf(latency).mean())


def answered_per_second(rung: Rung, within_seconds: float = math.inf) -> float:
    """Requests answered in the time in which requests were due, and each within `within_seconds`."""
    is_counted = (rung.due + rung.latency <= rung.duration) & (rung.latency <= within_seconds)
    return float(np.count_nonzero(is_counted) / rung.duration)


def _of_rung(load: Load, rung: Rung, *, is_rate_headline: bool, is_latency_headline: bool) -> Iterator[Point]:
    labels = {"rate": rung.name}
    yield point(
        "requests_per_second",
        "requests/s",
        "higher",
        answered_per_second(rung),
        labels=labels,
        is_headline=is_rate_headline,
        is_withdrawn=rung.cpu_share >= MOST_CPU_SHARE,
    )
    is_late = rung.is_limited_by_generator
    if load.objective is not None:
        goodput = answered_per_second(rung, load.objective.p99_milliseconds / 1e3)
        yield point("goodput_requests_per_second", "requests/s", "higher", goodput, labels=labels, is_withdrawn=is_late)
    rising = np.sort(rung.latency)
    for name, share in PERCENTILES.items():
        if not can_tell(share, len(rising)):
            continue
        yield point(
            f"latency_{name}_seconds",
            "s",
            "lower",
            percentile(rising, share),
            labels=labels,
            samples=rung.latency.tolist() if name == "p50" else (),
            is_headline=is_latency_headline and name == "p50",
            is_withdrawn=is_late,
        )
    if len(rising):
        failed = error_ratio(rung.latency)
        yield point("error_ratio", "failed/request", "lower", failed, labels=labels, is_withdrawn=is_late)
    yield point("generator_lag_p99_seconds", "s", "neither", rung.lag_p99, labels=labels)
    yield point("generator_cpu_ratio", "cores", "neither", rung.cpu_share, labels=labels)


def _of_kinds(load: Load, rung: Rung) -> Iterator[Point]:
    for kind, request in enumerate(load.scenario):
        latency = rung.latency[rung.kinds == kind]
        if not len(latency):
            continue
        labels = {"rate": rung.name, "request": request.name}
        is_late = rung.is_limited_by_generator
        rising = np.sort(latency)
        yield point("requests", "requests", "neither", float(len(latency)), labels=labels)
        for name in ("p50", "p99"):
            if not can_tell(PERCENTILES[name], len(rising)):
                continue
            value = percentile(rising, PERCENTILES[name])
            yield point(f"latency_{name}_seconds", "s", "lower", value, labels=labels, is_withdrawn=is_late)
        failed = error_ratio(latency)
        yield point("error_ratio", "failed/request", "lower", failed, labels=labels, is_withdrawn=is_late)
