"""The roof of a machine and what is under it, from the trials' figures."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from capstan_runtime.bench.analysis.collect import Trials
from capstan_runtime.bench.result import Ceiling, Dot, Series
from capstan_runtime.bench.statistics.bootstrap import interval, median

_CEILINGS = (
    ("peak_flops_per_second", "compute", "matmul {dtype}"),
    ("numpy_peak_flops_per_second", "compute", "numpy matmul {dtype}"),
    ("bandwidth_bytes_per_second", "bandwidth", "{level}"),
)
"""Metric, kind and name, filled in from the labels."""
_LEVELS = ("memory", "cache")


def derive(series: tuple[Series, ...], trials: Trials, confidence: float, seed: int) -> dict[str, Any]:
    """{"roofs": Ceilings, "dots": Dots} of the candidate.

    A dot is held against the bandwidth of what its bytes come from: the cache if all it touches fits there, or if it is
    faster than memory allows, which only a cache can explain; else memory.
    """
    candidate = [one for one in series if one.arm == "candidate"]
    rng = np.random.default_rng(seed)
    roofs = tuple(_ceilings(candidate, confidence, rng))
    dots = tuple(_dots(candidate, {roof.name: roof.median for roof in roofs}, confidence, rng))
    return {"roofs": roofs, "dots": dots}


def _ceilings(series: Sequence[Series], confidence: float, rng: np.random.Generator) -> Iterator[Ceiling]:
    for metric, kind, name in _CEILINGS:
        for one in series:
            if one.metric == metric:
                middle, low, high = _estimate(one.values, confidence, rng)
                yield Ceiling(
                    name=name.format(**one.labels), kind=kind, unit=one.unit, median=middle, low=low, high=high
                )


def _dots(
    series: Sequence[Series], roofs: dict[str, float], confidence: float, rng: np.random.Generator
) -> Iterator[Dot]:
    dtypes = {one.labels["dtype"] for one in series if one.metric == "model_flops_per_second"}
    for one in series:
        if one.metric != "model_flops_per_second":
            continue
        model, dtype = one.labels["model"], one.labels["dtype"]
        intensity = _of(series, "model_flops", model, dtype) / _of(series, "model_bytes", model, dtype)
        performance, low, high = _estimate(one.values, confidence, rng)
        compute = f"matmul {dtype}"
        bandwidths = [roofs[level] for level in _LEVELS if level in roofs]
        bandwidth = roofs.get(one.labels["level"], bandwidths[0])
        if performance > min(roofs[compute], bandwidth * intensity):
            bandwidth = max(bandwidths)
        slope = bandwidth * intensity
        yield Dot(
            name=model if len(dtypes) == 1 else f"{model} {dtype}",
            intensity=intensity,
            performance=performance,
            low=low,
            high=high,
            ceiling=compute,
            bound="compute" if slope >= roofs[compute] else "bandwidth",
            share=performance / min(roofs[compute], slope),
        )


def _of(series: Sequence[Series], metric: str, model: str, dtype: str) -> float:
    values = [
        value
        for one in series
        if one.metric == metric and (one.labels["model"], one.labels["dtype"]) == (model, dtype)
        for value in one.values
    ]
    return float(np.median(values))


def _estimate(values: Sequence[float], confidence: float, rng: np.random.Generator) -> tuple[float, float, float]:
    low, high = interval(values, median, confidence, rng)
    return float(np.median(values)), low, high
