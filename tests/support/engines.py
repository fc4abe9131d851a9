"""Small runs for both engines: their contexts, their batches, and checkpoints that live in memory."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from capstan_runtime.context import TrainContext
from capstan_runtime.contract.run_config import Deadlines, Membership, RunConfig
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.engine import Array, Batch, Engine, LocalTensor

IMAGES = DataSpec("image", (8, 8, 1), 10, "blake3:images")
TOKENS = DataSpec("tokens", (16,), 64, "blake3:tokens")

MLP = {"mlp": {"hidden": [24, 16]}}
CNN = {"cnn": {"channels": [8, 16], "groups": 4}}
TRANSFORMER = {"transformer": {"layers": 3, "dim": 32, "heads": 4, "kvHeads": 2}}
TIED = {"transformer": {"layers": 2, "dim": 32, "heads": 4, "tied": True}}
CONDITION = 3
"""Numbers that there are of each sample beside its input, for a model that takes them."""
DATA_OF = {"mlp": IMAGES, "cnn": IMAGES, "transformer": TOKENS, "custom": IMAGES}

ADAMW = {"adamw": {"learningRate": 3e-3, "weightDecay": 0.1}}
SGD = {"sgd": {"learningRate": 0.05, "momentum": 0.9, "nesterov": True, "weightDecay": 0.01}}

FLAX = {"flax": {}}


def deepspeed(stage: int) -> dict[str, Any]:
    return {"deepspeed": {"zeroStage": stage}}


def context_of(
    framework: dict[str, Any],
    model: dict[str, Any],
    rank: int = 0,
    world: int = 1,
    coordinator: str = "127.0.0.1:1",
    *,
    optimizer: dict[str, Any] = ADAMW,
    batch: int = 16,
    virtual_ranks: int | None = None,
    gradient_clip: float | None = 1.0,
    precision: str = "fp32",
    patience_seconds: float = 120.0,
    non_finite: str = "halt",
    micro_splits: int = 1,
    training: Mapping[str, Any] = MappingProxyType({}),
    **more: dict[str, Any],
) -> TrainContext:
    """A context of its own making; two micro-steps a rank unless `virtual_ranks` says otherwise. `training`: what else
    the run's says; `more`: other parts of the run, such as `loss`."""
    run = RunConfig.parse(
        {
            "job": "tests/small",
            "uid": "0",
            "framework": framework,
            "model": model,
            "data": {"digits": {}},
            "optimizer": optimizer,
            "schedule": {"constant": {}},
            "training": {
                "steps": 100,
                "globalBatchSize": batch,
                "virtualRanks": virtual_ranks or 2 * world,
                "precision": precision,
                "seed": 7,
                **({} if gradient_clip is None else {"gradientClip": gradient_clip}),
                **training,
            },
            "checkpoint": {"interval": {"steps": 10}},
            "numerical": {"nonFinite": non_finite},
            **more,
            "deadlines": Deadlines(
                form=patience_seconds, first_step=patience_seconds, save=patience_seconds
            ).document(),
        }
    )
    membership = Membership(fence=1, rank=rank, world=world, coordinator=coordinator, micro_splits=micro_splits)
    data = DATA_OF[next(iter(model))]
    if run.model.takes_conditions:
        data = replace(data, condition=CONDITION)
    return TrainContext(run=run, membership=membership, data=data, steps=100, environ={})


def make_engine(context: TrainContext) -> Engine:
    """The engine of the context's framework."""
    if context.run.framework.kind == "flax":
        from capstan_runtime.flax_trainer.engine import FlaxEngine

        return FlaxEngine(context)
    from capstan_runtime.deepspeed_trainer.engine import DeepSpeedEngine

    return DeepSpeedEngine(context)


def batch_of(context: TrainContext, step: int) -> Batch:
    """This rank's part of a global batch that depends on `step` alone, with something to learn in it."""
    shape = (context.micro_steps * context.data_world, context.samples_per_micro_step)
    random = np.random.default_rng(step)
    spec = context.data
    if spec.kind == "tokens":
        steps = random.integers(1, 4, size=(*shape, 1))
        windows = (random.integers(0, spec.outputs, size=(*shape, 1)) + steps * np.arange(spec.input_shape[0] + 1)) % 64
        inputs, targets = windows[..., :-1].astype(np.int32), windows[..., 1:].astype(np.int32)
    else:
        targets = random.integers(0, spec.outputs, size=shape).astype(np.int32)
        noise = random.normal(size=(*shape, *spec.input_shape))
        inputs = (noise + targets[..., None, None, None] / 3).astype(np.float32)
    mine = slice(context.data_rank * context.micro_steps, (context.data_rank + 1) * context.micro_steps)
    keys = random.integers(0, 2**32, size=shape, dtype=np.uint32)
    batch = Batch(inputs[mine], targets[mine], np.ones(shape, np.float32)[mine], keys[mine])
    if not spec.condition:
        return batch
    conditions = np.cos(targets[..., None] + np.arange(spec.condition)).astype(np.float32)
    return batch._replace(conditions=conditions[mine])


def train(engine: Engine, context: TrainContext, first: int, last: int) -> list[tuple[float, float]]:
    """Loss and gradient norm of the steps first … last - 1."""
    peak = context.run.optimizer.value.learning_rate
    results = [
        engine.train_step(batch_of(context, step), peak * min(1.0, (step + 1) / 5)).fetch()
        for step in range(first, last)
    ]
    return [(result["loss"], result["gradient_norm"]) for result in results]


class Saved:
    """Whole tensors in memory, as a TensorSource."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self._tensors = tensors

    def names(self) -> Iterator[str]:
        return iter(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def read(self, name: str) -> Array:
        return self._tensors[name]

    def read_range(self, name: str, start: int, stop: int) -> Array:
        return self._tensors[name].reshape(-1)[start:stop]


class WholeTensors(Saved):
    """What all ranks exported, put together. Refuses gaps and overlaps."""

    def __init__(self, parts: Iterable[LocalTensor]) -> None:
        self._tensors: dict[str, Array] = {}
        covered: dict[str, Array] = {}
        for part in parts:
            whole = self._tensors.setdefault(part.name, np.zeros(part.shape, part.data.dtype))
            assert (whole.shape, whole.dtype) == (part.shape, part.data.dtype), part.name
            assert part.data.ndim == 1
            assert part.data.flags["C_CONTIGUOUS"]
            seen = covered.setdefault(part.name, np.zeros(whole.size, np.int8))
            seen[part.start : part.start + part.data.size] += 1
            whole.reshape(-1)[part.start : part.start + part.data.size] = part.data
        untiled = {name for name, seen in covered.items() if (seen != 1).any()}
        assert not untiled, f"not tiled exactly once: {untiled}"
