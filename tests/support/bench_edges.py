"""Results at the edges of what reports can be given: too much, nothing, and what is hostile."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from capstan_runtime.bench.result import (
    Baseline,
    BenchmarkResult,
    Law,
    ScalingRow,
)
from capstan_runtime.contract.benchmark import GateTask, Repeat
from capstan_runtime.contract.reference import REFERENCE_ROWS
from tests.support.bench_maker import CPU, GPU, Maker
from tests.support.bench_results import inference, scaling, scaling_law

HOSTILE = "<script>alert(1)</script> **bold** [here](http://x.example) | `code` _it_ \\ $x^2$ \n# head\x1b[31m & &lt;"


def many_sizes() -> BenchmarkResult:
    """16 batch sizes, 12 runs each, over four orders of magnitude."""
    return inference(tuple(2**power for power in range(16)), runs=12, spread=0.1)


def one_point() -> BenchmarkResult:
    """One case that ran once: nothing has an interval."""
    return inference((32,), runs=1)


def hostile() -> BenchmarkResult:
    """Names, labels and notes that are markup, very long, or of other alphabets; values that are no numbers."""
    make = Maker(9)
    make.measure("steps_per_second", "steps/s", "higher", 3.0, {"model": HOSTILE}, is_headline=True)
    make.measure("steps_per_second", "steps/s", "higher", 4.0, {"model": "a" * 300}, is_headline=True)
    make.measure("steps_per_second", "steps/s", "higher", float("nan"), {"model": "図書館の模型"}, is_headline=True)
    make.measure("steps_per_second", "steps/s", "higher", float("inf"), {"model": "∞"}, is_headline=True)
    make.measure("latency_p99_seconds", "s", "lower", float("inf"), {"rate": "10"})
    make.measure("latency_p99_seconds", "s", "lower", float("nan"), {"rate": "20"})
    make.measure("error_ratio", "failed/request", "lower", 0.0, {"rate": "10"})
    make.measure("error_ratio", "failed/request", "lower", 0.0, {"rate": "20"})
    make.compare(lambda at: (-250.0, 3.0, float("nan"), float("inf"))[at], "Inconclusive", 400.0)
    return make.result(
        "training",
        HOSTILE,
        verdict="Inconclusive",
        reason=HOSTILE * 3,
        notes=(HOSTILE, "b" * 500),
        repeats=(Repeat(trial="t00", attempt=1, reason=HOSTILE),),
        spec={"note": HOSTILE},
        gate=GateTask(minimum_effect_percent=5, confidence=0.99),
        baseline=Baseline(kind="benchmark", name=HOSTILE, is_comparable=True, differences=(HOSTILE,)),
        environments=(CPU, GPU, CPU.model_copy(update={"cpu": HOSTILE, "node": "c" * 250})),
    )


def nothing() -> BenchmarkResult:
    """No figure at all: every run failed, or there was none."""
    return Maker().result("collectives", "nothing was measured", environments=(), control_seconds=())


def big_cluster() -> BenchmarkResult:
    """Scaling up to 1,024 workers beside reference figures, and a law over 200 runs of 200 sizes."""
    rng = np.random.default_rng(10)
    rows = []
    for workers in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
        speedup = workers / (1 + 0.004 * workers**0.8)
        rows.append(
            ScalingRow(
                mode="strong",
                workers=workers,
                speedup=speedup,
                speedup_low=0.9 * speedup,
                speedup_high=1.1 * speedup,
                efficiency=speedup / workers,
                efficiency_low=0.9 * speedup / workers,
                efficiency_high=1.1 * speedup / workers,
            )
        )
    points = tuple(
        (float(10 ** rng.uniform(7, 10)), float(10 ** rng.uniform(8, 12)), float(rng.uniform(2, 4))) for _ in range(200)
    )
    law = Law(
        points=points,
        fits=(
            scaling_law(False).law.fits[0].model_copy(update={"residuals": tuple(rng.normal(0, 0.02, 200).tolist())}),
        ),
    )
    return scaling().model_copy(
        update={"scaling": tuple(rows), "law": law, "reference": REFERENCE_ROWS["data-parallel-speedup"]}
    )


EDGES: dict[str, Callable[[], BenchmarkResult]] = {
    "many_sizes": many_sizes,
    "one_point": one_point,
    "hostile": hostile,
    "nothing": nothing,
    "big_cluster": big_cluster,
}
