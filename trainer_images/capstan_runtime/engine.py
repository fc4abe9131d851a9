"""The seam between the one training loop and the frameworks: what an engine must do, in numpy terms.

Shapes: M micro-steps of this rank (V / W), b samples per micro-step (B / V), and the sample's own shape.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, NoReturn, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from capstan_runtime.contract.signature import Signature

Array = npt.NDArray[np.generic]
AnyArray = TypeVar("AnyArray")


class Batch(NamedTuple, Generic[AnyArray]):
    """This rank's samples of one optimizer step, or of one evaluation step; a tuple, which every framework can map.

    On a device its arrays are the framework's. Inside a step a batch is one micro-step's, without the axis M.
    """

    inputs: AnyArray
    """[M, b, *sample]; float32 for images and features, int32 for tokens."""
    targets: AnyArray
    """[M, b] int32 class ids, or [M, b, T] int32 next tokens."""
    weights: AnyArray | None = None
    """[M, b] float32: 1 for a sample that counts, 0 for padding. None: training, where batches are full."""
    keys: AnyArray | None = None
    """[M, b] uint32: each sample's key of whatever is left to chance (`randomness`). None: evaluation, nothing is."""
    second_targets: AnyArray | None = None
    """[M, b] int32: of samples that are made of two, the other's. None: no sample is."""
    shares: AnyArray | None = None
    """[M, b] float32: the share that `targets` has in each of them."""
    conditions: AnyArray | None = None
    """[M, b, K] float32: what the data says of each sample beside its input. None: nothing."""


@dataclass(frozen=True, slots=True)
class LocalTensor:
    """The part of one named tensor that this rank saves. Over all ranks every tensor is tiled exactly once."""

    name: str
    """Canonical, the same in every framework: `params/<parameter>`, `optimizer/<moment>/<parameter>`."""
    shape: tuple[int, ...]
    """Of the whole tensor; () for a scalar."""
    start: int
    """First element of `data` in the whole tensor, flattened in C order."""
    data: Array
    """One-dimensional, contiguous, in host memory. Perhaps a view of the state itself: it holds until the next step, or
    the next import, and is copied by whoever wants it for longer."""


class TensorSource(Protocol):
    """Whole tensors by name, each byte checked against the checkpoint's digests as it is read."""

    def names(self) -> Iterable[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor; reads nothing. Raises KeyError if there is none."""
        ...

    def read(self, name: str) -> Array:
        """The whole tensor. Raises CorruptCheckpoint if a byte is wrong, KeyError if there is none."""
        ...

    def read_range(self, name: str, start: int, stop: int) -> Array:
        """Elements [start, stop) of the flattened tensor, one-dimensional. Raises as `read`; reads, and so verifies,
        only the leaves that they touch."""
        ...


@dataclass(frozen=True, slots=True)
class Trained:
    """A model that was trained before."""

    signature: Signature
    root: str
    """Digest of its checkpoint's manifest."""
    tensors: TensorSource
    """Its checkpoint's, each byte verified as it is read."""
    step: int = 0
    """Optimizer steps done."""
    size: int = 0
    """Bytes of its weights, as they are saved."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What all ranks of a run compute with together."""

    devices: int
    name: str | None = None
    """What their maker calls them. None: they are CPUs."""


class StepResult(Protocol):
    """The outcome of a step that the device may still be working on."""

    def fetch(self) -> Mapping[str, float]:
        """`loss` (mean over the global batch) and `gradient_norm` (before clipping), the same on every rank. Waits for
        the device. Where the loss is scaled (fp16), also `loss_scale`, of this step, and `skipped_steps`, of the run
        so far with this one. A norm that is not finite says that the update ruined the weights or, where the run drops
        such updates (`numerical.nonFinite: ignore`, fp16), that it was left out."""
        ...


@dataclass(frozen=True, slots=True)
class EvaluationSums:
    """Sums over this rank's share of the validation samples; added up over ranks by the loop."""

    loss: float
    correct: float
    """Right predictions: of samples, or of tokens."""
    count: float
    """Samples or tokens that counted."""


class Stateful(Protocol):
    """One rank's side of a state that is saved and restored: an engine's, or that of a user's own program."""

    def export_state(self) -> Iterator[LocalTensor]:
        """What this rank saves of it. Collective: every rank must iterate to the end."""
        ...

    def import_state(self, source: TensorSource) -> None:
        """Replaces it. Not collective; after a failure another source may follow."""
        ...

    def exchange(self, payload: bytes) -> list[bytes]:
        """Every rank's payload (at most 64 KiB), in rank order. Collective, over the host network."""
        ...


class Engine(Stateful, Protocol):
    """One rank of one framework. Constructing it joins the world and places freshly initialised state."""

    rank: int
    world: int
    parameters: int
    """Weights of the model, all of them, however they are divided over the ranks."""
    devices: int
    """Of this rank; each micro-step's samples are divided evenly over them."""
    hardware: Hardware

    def read_teacher(self) -> None:
        """Reads whom the model learns from, if its context names somebody: once, before the first step or evaluation.
        Not made with the engine, since it takes as long as reading a checkpoint does. Not collective. Raises
        CorruptCheckpoint, StoreUnavailable, ConfigError."""
        ...

    def memory_limit(self) -> int | None:
        """Bytes that a step may take of each of this rank's devices. None: not known, or what a step takes cannot be
        told before it is made."""
        ...

    def step_memory(self, batch: Batch) -> int | None:
        """Bytes that one of this rank's devices holds at most in a step on such a batch, with all that stays there.
        None: more than there are. Changes nothing; called on all ranks alike, for batches of equal shapes, it waits for
        none of them in what may fail."""
        ...

    def train_step(self, batch: Batch, learning_rate: float) -> StepResult:
        """One optimizer step over M micro-steps, of a batch with keys; returns as soon as the work is queued."""
        ...

    def evaluate(self, batches: Iterable[Batch], trained: Trained | None = None) -> EvaluationSums:
        """What adds up over all ranks: of ranks that hold one replica together, and so are given the same batches, one
        returns what they found, and the others zeros. `trained`: of that model, as it is served, in the place of the
        engine's own."""
        ...

    def quantize(self) -> None:
        """The weights, or their average if the run keeps one, become what their integers stand for; no step follows,
        and a save is of the model alone. Only of a run that quantizes."""
        ...

    def sparsity(self) -> float | None:
        """Of the weights that the run may prune (`is_pruned`), the share that is 0; the same on every rank. Waits for
        the device. None: it prunes nothing."""
        ...

    def busy_seconds(self) -> float | None:
        """Seconds since it was made that this rank itself worked in or for its steps, however long it waited for others
        in them. None: cannot be told apart here."""
        ...

    def trace(self, folder: Path) -> Callable[[], None]:
        """Begins to trace what this process and its device do. What it returns ends that, and puts the framework's
        files into `folder`, which is there; it raises OSError."""
        ...

    def poison_next_step(self) -> None:
        """This rank's loss and gradient of the next step are NaN. A fault to be injected."""
        ...

    def exhaust_memory(self) -> NoReturn:
        """Asks the device for more memory than it can have, and raises GpuOutOfMemory. A fault to be injected."""
        ...

    def close(self) -> None:
        """Leaves the world."""
        ...
