"""Puts a made-up result together, around values that are given."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

import numpy as np

from capstan_runtime.bench.result import (
    QUANTILE_PERCENTS,
    BenchmarkResult,
    Distribution,
    Series,
)
from capstan_runtime.contract.benchmark import Arm, Better, Comparison, Environment, Figure, Verdict

RUNS = 5
CPU = Environment(
    node="bench-1",
    cpu="AMD EPYC 9654 96-Core Processor",
    cores=2,
    memory_bytes=24_000_000_000,
    threads=1,
    kernel="6.1.0-28-amd64",
    python="3.11.7",
    packages={"capstan": "0.1.0", "numpy": "2.4.6", "jax": "0.10.2", "torch": "2.13.0+cpu"},
)
GPU = CPU.model_copy(update={"gpus": ("NVIDIA H100 80GB HBM3",) * 8, "driver": "580.65", "node": "gpu-7"})


class Maker:
    """Series and what follows from them, around values that are given."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self.series: list[Series] = []
        self.figures: list[Figure] = []
        self.distributions: list[Distribution] = []
        self.comparisons: list[Comparison] = []

    def measure(
        self,
        metric: str,
        unit: str,
        better: Better,
        value: float,
        labels: Mapping[str, str] | None = None,
        *,
        spread: float = 0.02,
        is_headline: bool = False,
        arm: Arm = "candidate",
        runs: int = RUNS,
    ) -> None:
        """`runs` trials near `value`."""
        values = tuple(float(one) for one in value * np.exp(self._rng.normal(0, spread, runs)))
        shared = {"metric": metric, "labels": dict(labels or {}), "unit": unit, "better": better}
        trials = tuple(f"t{at:02d}" for at in range(runs))
        self.series.append(Series(**shared, arm=arm, values=values, trials=trials, is_headline=is_headline))
        if arm == "candidate":
            median = statistics.median(values)
            self.figures.append(
                Figure(
                    **shared,
                    n=runs,
                    median=median,
                    low=min(values),
                    high=max(values),
                    outliers=int(runs > 2 and max(values) > 1.06 * median),
                    is_headline=is_headline,
                )
            )

    def distribute(self, metric: str, unit: str, typical: float, labels: Mapping[str, str], tail: float = 0.4) -> None:
        """Log-normal samples with a few slow ones."""
        samples = typical * np.exp(self._rng.normal(0, tail, 20_000))
        samples[:60] *= 8
        quantiles = tuple(float(one) for one in np.percentile(samples, QUANTILE_PERCENTS))
        self.distributions.append(
            Distribution(metric=metric, labels=dict(labels), unit=unit, count=20_000, quantiles=quantiles)
        )

    def compare(self, effects: Callable[[int], float], verdict: Verdict, width: float = 1.5) -> None:
        """Each headline figure with a baseline that differs by `effects(its place)` percent."""
        for at, figure in enumerate(figure for figure in self.figures if figure.is_headline):
            effect = effects(at)
            self.comparisons.append(
                Comparison(
                    metric=figure.metric,
                    labels=figure.labels,
                    unit=figure.unit,
                    baseline=figure.median / (1 + effect / 100),
                    candidate=figure.median,
                    effect_percent=effect,
                    low_percent=effect - width,
                    high_percent=effect + width,
                    p_value=0.008 if abs(effect) > width else 0.42,
                    verdict=verdict if abs(effect) > width or verdict == "Inconclusive" else "Passed",
                    reason=f"the effect is {effect:+.1f} % and its interval {2 * width:.1f} % wide",
                )
            )

    def result(self, workload: str, headline: str, **more: object) -> BenchmarkResult:
        known: dict[str, object] = {
            "name": f"{workload.lower()}-nightly",
            "namespace": "default",
            "uid": "8c5b1f8e-2f0f-4a53-9a3c-5f7d3c2f1a10",
            "workload": workload,
            "spec": {"workload": {workload: {}}, "repetitions": RUNS},
            "seed": 7,
            "started_at": 1_795_917_600.0,
            "finished_at": 1_795_918_240.0,
            "environments": (CPU,),
            "control_seconds": (0.0101, 0.0102, 0.0101, 0.0104, 0.0102),
            "headline": headline,
            "series": tuple(self.series),
            "figures": tuple(sorted(self.figures, key=lambda figure: not figure.is_headline)),
            "distributions": tuple(self.distributions),
            "comparisons": tuple(self.comparisons),
            "reason": "measured, and compared with nothing: spec.baseline is not set",
        }
        return BenchmarkResult.model_validate({**known, **more})
