"""How many operations a training step needs by the product's own formula, beside what the frameworks count in it.

`status.metrics.model_flops_per_second` and `mfu` are as true as the formula is. XLA's count is of the whole compiled
step, elementwise work and the optimizer as well, without what a convolution would multiply beyond an image's border.
Torch's is of matrix products and convolutions. So images are large, and batches of what computes little are too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.report import Figure
from capstan_runtime.context import TrainContext
from capstan_runtime.contract.run_config import Membership, RunConfig
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.engine import Batch
from capstan_runtime.flops import step_flops

FRAMEWORKS: dict[str, dict[str, Any]] = {"flax": {"flax": {}}, "deepspeed": {"deepspeed": {"zeroStage": 1}}}
TOKENS = DataSpec("tokens", (256,), 1024, fingerprint="")
IMAGES = DataSpec("image", (128, 128, 3), 100, fingerprint="")
FEATURES = DataSpec("vector", (2048,), 100, fingerprint="")
# XLA counts the body of a loop once, and a decoder's layers are one: it has one layer.
MODELS: dict[str, tuple[dict[str, Any], DataSpec, int]] = {
    "decoder": ({"transformer": {"layers": 1, "dim": 768, "heads": 12, "kvHeads": 4}}, TOKENS, 8),
    "cnn": ({"cnn": {"channels": [32, 64], "groups": 8}}, IMAGES, 4),
    "mlp": ({"mlp": {"hidden": [1024, 1024]}}, FEATURES, 512),
}
"""Architecture, data and batch size."""
PATIENCE_SECONDS = 600.0


def measure() -> Iterator[Figure]:
    """Of each model in each framework."""
    for framework in FRAMEWORKS:
        for model in MODELS:
            ours, counted = count(framework, model)
            name = f"{framework}: {model}, {ours:.4g} FLOP a step by the formula, {counted:.4g} counted"
            yield Figure(name, 100 * (ours / counted - 1), "%", "python -m benchmarks flops")


def count(framework: str, model: str) -> tuple[float, float]:
    """(by the formula, as the framework counts them) of one optimizer step, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.flops", framework, model]
    environ = {"JAX_PLATFORMS": "cpu", "DS_ACCELERATOR": "cpu", **os.environ}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr}")
    ours, counted = json.loads(done.stdout.splitlines()[-1])
    return ours, counted


def _context(framework: str, model: str) -> TrainContext:
    architecture, data, batch = MODELS[model]
    run = RunConfig.parse(
        {
            "job": "default/flops",
            "uid": "flops",
            "framework": FRAMEWORKS[framework],
            "model": architecture,
            "data": {"digits": {}},
            "optimizer": {"adamw": {"learningRate": 1e-3}},
            "schedule": {"constant": {}},
            "training": {"steps": 1, "globalBatchSize": batch, "virtualRanks": 1},
            "checkpoint": {"interval": {"seconds": 86400}},
        }
    )
    member = Membership(fence=1, rank=0, world=1, coordinator=f"127.0.0.1:{29000 + os.getpid() % 1000}")
    return TrainContext(run=run, membership=member, data=data, steps=1, environ=os.environ)


def _batch(context: TrainContext) -> Batch:
    size = (1, context.run.training.global_batch_size)
    shape, keys = (*size, *context.data.input_shape), np.zeros(size, np.uint32)
    if context.data.kind == "tokens":
        tokens = np.zeros(shape, np.int32)
        return Batch(tokens, tokens, keys=keys)
    return Batch(np.zeros(shape, np.float32), np.zeros(size, np.int32), keys=keys)


def _counted_by_xla(context: TrainContext) -> float:
    from capstan_runtime.flax_trainer.engine import FlaxEngine

    engine = FlaxEngine(context)
    numbers = engine._update.numbers(1e-3, 1, 1.0)
    state = engine._parameters, engine._state, engine._buffers, engine._scale
    lowered = engine._program.lower(*state, engine._spread(_batch(context)), numbers, engine._taught_by)
    costs: Any = lowered.compile().cost_analysis()
    return float(costs["flops"])


def _counted_by_torch(context: TrainContext) -> float:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from capstan_runtime.deepspeed_trainer.engine import DeepSpeedEngine

    engine = DeepSpeedEngine(context)
    counter = FlopCounterMode(display=False)
    # Torch has no count for attention's fused form on CPUs.
    with sdpa_kernel(SDPBackend.MATH), counter:
        engine.train_step(_batch(context), 1e-3)
    return float(counter.get_total_flops())


def main(framework: str, model: str) -> None:
    context = _context(framework, model)
    counted = _counted_by_xla(context) if framework == "flax" else _counted_by_torch(context)
    print(json.dumps([step_flops(context.run, context.data), counted]), flush=True)
    os._exit(0)  # exit handlers of frameworks have nothing more to say


if __name__ == "__main__":
    main(*sys.argv[1:])
