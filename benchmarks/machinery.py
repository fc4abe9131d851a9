"""What being measured costs: calls timed by a Benchmark's workload beside a bare loop over the same calls.

The model is the smallest that anybody would measure, so the share is the largest: a perceptron of 64 hidden units at
batch size 1. Blocks of both take turns, and the fastest block of each counts: whatever else the machine does can only
add to a block.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

from benchmarks.report import Figure
from capstan_runtime.bench.measured import time_calls
from capstan_runtime.bench.models import RandomTensors, fresh_signature
from capstan_runtime.bench.workloads.inference import prepare_inputs
from capstan_runtime.contract.workloads import FreshModel
from capstan_runtime.serving.load import builder

COMMAND = "python -m benchmarks machinery"
ROUNDS = 300
CALLS = 20
"""Of a block."""
MODEL = FreshModel.model_validate(
    {
        "architecture": {"mlp": {"hidden": [64]}},
        "input": {"image": {"height": 8, "width": 8, "channels": 1, "classes": 10}},
    }
)


def measure() -> list[Figure]:
    figures = []
    for runtime in ("flax", "torch"):
        microseconds, percent = _overhead(_prepared_call(runtime))
        figures += [
            Figure(f"{runtime}: a call of an MLP (64) at batch size 1, bare loop", microseconds, "us", COMMAND),
            Figure(f"{runtime}: added to it by timing each call", percent, "%", COMMAND),
        ]
    bare, percent = _overhead(_nothing)
    figures.append(Figure("a call that does nothing, bare loop", bare, "us", COMMAND))
    figures.append(Figure("the same, as it is timed", bare * (1 + percent / 100), "us", COMMAND))
    return figures


def _prepared_call(runtime: str) -> Callable[[], object]:
    signature = fresh_signature(MODEL.architecture, MODEL.input)
    classifier = builder(runtime)(signature, RandomTensors(signature, 0), 1)
    classifier.warm([1])  # type: ignore[call-arg]
    return partial(classifier.logits, prepare_inputs(signature, 1, 0))  # type: ignore[union-attr]


def _overhead(call: Callable[[], object]) -> tuple[float, float]:
    """(us of a call in a bare loop, percent that the timer says more)."""
    bare, timed = float("inf"), float("inf")
    for _ in range(ROUNDS):
        bare = min(bare, _bare(call))
        timed = min(timed, statistics.fmean(time_calls(call, 0.0, fewest=CALLS)))
    return 1e6 * bare, 100 * (timed / bare - 1)


def _bare(call: Callable[[], object]) -> float:
    """Seconds per call, the clock read twice in all, after one that does not count, as in a timed block."""
    call()
    started = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - started) / CALLS


def _nothing() -> None:
    return None
