"""What the sweep of a collective operation says about any size: seconds = latency + bytes / bandwidth."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import least_squares

from capstan_runtime.bench.result import CollectiveFit, Series
from capstan_runtime.bench.statistics.bootstrap import Floats, interval, median
from capstan_runtime.contract.benchmark import Better
from capstan_runtime.contract.sizes import size_bytes

if TYPE_CHECKING:
    from capstan_runtime.bench.analysis.collect import Trials

LATENCY = "fitted_latency_seconds"
BANDWIDTH = "fitted_bandwidth_bytes_per_second"


def derive(series: tuple[Series, ...], trials: "Trials", confidence: float, seed: int) -> dict[str, Any]:
    """`collectives`: a fit for each operation of the candidate, its median over trials with the bootstrap interval of
    that; and `series`: what was fitted in every trial, so that it is compared like all else.

    An operation of which less than two sizes were measured has none, nor has one that does not take longer for more.
    """
    rng = np.random.default_rng(seed)
    fitted = [each for own in _sweeps(series) for each in _fitted(own)]
    latencies = [each for each in fitted if each.metric == LATENCY and each.arm == "candidate"]
    bandwidths = [each for each in fitted if each.metric == BANDWIDTH and each.arm == "candidate"]
    fits = []
    for latency, bandwidth in zip(latencies, bandwidths, strict=True):
        latency_low, latency_high = interval(latency.values, median, confidence, rng)
        bandwidth_low, bandwidth_high = interval(bandwidth.values, median, confidence, rng)
        fits.append(
            CollectiveFit(
                operation=latency.labels["operation"],
                latency_seconds=float(np.median(latency.values)),
                latency_low=latency_low,
                latency_high=latency_high,
                bandwidth_bytes_per_second=float(np.median(bandwidth.values)),
                bandwidth_low=bandwidth_low,
                bandwidth_high=bandwidth_high,
            )
        )
    return {"collectives": tuple(fits), "series": tuple(fitted)}


def fit(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """(seconds at size 0, seconds per byte), neither below 0: least squares of the logarithms of the times.

    Every size counts the same, by the factor that the line is off, up or down: so the small ones say what the latency
    is, and the large ones the bandwidth. By absolute errors the largest, which take thousands of times as long, would
    decide both. Raises ValueError for less than two different sizes, and for a time that is not above 0.
    """
    size, taken = np.asarray(sizes, np.float64), np.asarray(seconds, np.float64)
    if np.unique(size).size < 2:
        raise ValueError(f"sizes: {len(sizes)} of which no two differ; a line needs two")
    if not (taken > 0).all():
        raise ValueError("seconds: not all are above 0")
    constant = np.exp(np.log(taken).mean())
    if (np.log(constant / taken) @ size) >= 0:  # any slope would make it worse
        return float(constant), 0.0
    slope = np.exp(np.log(taken / size).mean())
    if (np.log(slope * size / taken) @ (1 / size)) >= 0:  # so would any latency
        return 0.0, float(slope)

    def factors(logarithms: Floats) -> Floats:
        latency, per_byte = np.exp(logarithms)
        return np.log((latency + per_byte * size) / taken)

    start = np.log([taken.min(), taken.max() / size.max()])
    latency, per_byte = np.exp(least_squares(factors, start, method="lm", xtol=1e-12, ftol=1e-12).x)
    return float(latency), float(per_byte)


def _sweeps(series: tuple[Series, ...]) -> Iterator[list[Series]]:
    """The times of one operation in one arm, over sizes."""
    found: dict[tuple[str, str], list[Series]] = {}
    for each in series:
        if each.metric == "seconds":
            found.setdefault((each.arm, each.labels["operation"]), []).append(each)
    for own in found.values():
        if len(own) > 1:
            yield own


def _fitted(own: list[Series]) -> Iterator[Series]:
    """Latency and bandwidth in each trial; neither, where a trial's times do not rise with the size."""
    by_trial: dict[str, list[tuple[int, float]]] = {}
    for each in own:
        for trial, seconds in zip(each.trials, each.values, strict=True):
            by_trial.setdefault(trial, []).append((size_bytes(each.labels["size"]), seconds))
    lines = [fit(*zip(*sweep, strict=True)) for sweep in by_trial.values()]
    if all(per_byte > 0 for _, per_byte in lines):
        arm, operation = own[0].arm, own[0].labels["operation"]
        shared = {"labels": {"operation": operation}, "arm": arm, "trials": tuple(by_trial)}
        better: Better = "lower"
        yield Series(metric=LATENCY, unit="s", better=better, values=tuple(line[0] for line in lines), **shared)
        yield Series(
            metric=BANDWIDTH, unit="B/s", better="higher", values=tuple(1 / line[1] for line in lines), **shared
        )
