"""Softmax regression with momentum in numpy: everything the loop asks of an engine, and nothing else."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from capstan_runtime.context import TrainContext
from capstan_runtime.engine import Batch, EvaluationSums, Hardware, LocalTensor, TensorSource, Trained
from capstan_runtime.errors import GpuOutOfMemory
from capstan_runtime.parallel.tiling import tile_evenly
from tests.support.socket_world import SocketWorld


@dataclass(frozen=True)
class Done:
    values: Mapping[str, float]

    def fetch(self) -> Mapping[str, float]:
        return self.values


class NumpyEngine:
    """Gradients are summed in rank order, so a run is the same to the last bit every time."""

    def __init__(self, context: TrainContext) -> None:
        member, features = context.membership, _features(context)
        self.rank, self.world = member.rank, member.world
        random = np.random.default_rng(context.run.training.seed)
        shape = (features, context.data.outputs)
        self.state: dict[str, np.ndarray] = {
            "params/kernel": random.normal(0, 0.1, shape).astype(np.float32),
            "params/bias": np.zeros(context.data.outputs, np.float32),
            "optimizer/momentum/kernel": np.zeros(shape, np.float32),
            "optimizer/momentum/bias": np.zeros(context.data.outputs, np.float32),
            "optimizer/count": np.zeros((), np.int64),
        }
        self.parameters = sum(each.size for name, each in self.state.items() if name.startswith("params/"))
        self._drops_non_finite = context.run.numerical.non_finite == "ignore"
        self.devices = 1
        self.hardware = Hardware(member.world)
        self._memory = context.device_memory
        self._loss_factor = 1.0
        self._busy_seconds = 0.0
        self._world = SocketWorld(member.rank, member.world, member.coordinator, context.deadlines.form)
        self.exchange = self._world.exchange
        self.close = self._world.close

    def _forward(self, inputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        flat = inputs.reshape(len(targets), -1)[:, : len(self.state["params/kernel"])]
        logits = flat @ self.state["params/kernel"] + self.state["params/bias"]
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = exponents / exponents.sum(axis=1, keepdims=True)
        return flat, shares, -np.log(shares[np.arange(len(targets)), targets] + 1e-12)

    def read_teacher(self) -> None:
        """There is none: `evaluate` knows no other model."""

    def memory_limit(self) -> int | None:
        return self._memory

    def step_memory(self, batch: Batch) -> int | None:
        """A kilobyte for each sample in a micro-step; where two would not fit, nobody knows how much more it takes."""
        assert self._memory is not None
        needed = 1000 * batch.targets.shape[1]
        return needed if needed < 2 * self._memory else None

    def train_step(self, batch: Batch, learning_rate: float) -> Done:
        began = time.perf_counter()
        samples = batch.targets.size * self.world
        total = np.zeros(self.state["params/kernel"].size + self.state["params/bias"].size + 1, np.float64)
        for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
            flat, shares, losses = self._forward(inputs, targets)
            shares[np.arange(len(targets)), targets] -= 1
            total += np.concatenate([(flat.T @ shares).ravel(), shares.sum(axis=0), [losses.sum()]])
        total *= self._loss_factor
        self._loss_factor = 1.0
        self._busy_seconds += time.perf_counter() - began
        total = np.sum([np.frombuffer(part) for part in self.exchange(total.tobytes())], axis=0) / samples
        norm = float(np.linalg.norm(total[:-1]))
        if np.isfinite(norm) or not self._drops_non_finite:
            self._update(total, learning_rate)
        self.state["optimizer/count"] = self.state["optimizer/count"] + 1
        return Done({"loss": float(total[-1]), "gradient_norm": norm})

    def _update(self, total: np.ndarray, learning_rate: float) -> None:
        kernel_size = self.state["params/kernel"].size
        gradients = {"kernel": total[:kernel_size].reshape(self.state["params/kernel"].shape)}
        gradients["bias"] = total[kernel_size:-1]
        for name, gradient in gradients.items():
            momentum = (0.9 * self.state[f"optimizer/momentum/{name}"] + gradient).astype(np.float32)
            self.state[f"optimizer/momentum/{name}"] = momentum
            self.state[f"params/{name}"] = self.state[f"params/{name}"] - np.float32(learning_rate) * momentum

    def evaluate(self, batches: Iterable[Batch], trained: Trained | None = None) -> EvaluationSums:
        assert trained is None, "this engine knows no model but its own"
        loss = correct = count = 0.0
        for batch in batches:
            for inputs, targets, weights in zip(batch.inputs, batch.targets, batch.weights, strict=True):
                _, shares, losses = self._forward(inputs, targets)
                loss += float((losses * weights).sum())
                correct += float(((shares.argmax(axis=1) == targets) * weights).sum())
                count += float(weights.sum())
        return EvaluationSums(loss, correct, count)

    def quantize(self) -> None:
        raise AssertionError("this engine has no integers; no run of it quantizes")

    def sparsity(self) -> float | None:
        return None

    def export_state(self) -> Iterator[LocalTensor]:
        names = sorted(self.state)
        for part in tile_evenly([self.state[name].size for name in names], self.rank, self.world):
            tensor = self.state[names[part.tensor]]
            data = tensor.reshape(-1)[part.start : part.stop].copy()
            yield LocalTensor(names[part.tensor], tensor.shape, part.start, data)

    def import_state(self, source: TensorSource) -> None:
        self.state = {name: source.read(name).copy() for name in self.state}

    def busy_seconds(self) -> float:
        return self._busy_seconds

    def trace(self, folder: Path) -> Callable[[], None]:
        first = int(self.state["optimizer/count"])

        def end() -> None:
            (folder / "steps").write_text(f"{first + 1}-{int(self.state['optimizer/count'])}")

        return end

    def poison_next_step(self) -> None:
        self._loss_factor = float("nan")

    def exhaust_memory(self) -> NoReturn:
        raise GpuOutOfMemory("the numpy engine was told to run out of memory")


def _features(context: TrainContext) -> int:
    """How many of a sample's numbers the model sees: all or, with NARROW, as many as the run's first layer is wide. So
    there are larger and smaller models."""
    there = int(np.prod(context.data.input_shape))
    mlp = context.run.model.mlp
    return min(there, mlp.hidden[0]) if "NARROW" in context.environ and mlp is not None else there
