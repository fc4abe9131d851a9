"""What a dataset is to the rest of the runtime."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from capstan_runtime.data.report import QualityReport
from capstan_runtime.errors import ConfigError
from capstan_runtime.randomness import Keys

Array = npt.NDArray[np.generic]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample that cannot be trained on."""

    index: int
    """Its number among the samples that were asked."""
    where: str
    """For people: its file, or its number in the file."""
    reason: str
    """What it does, such as `holds a NaN`."""

    def __str__(self) -> str:
        return f"{self.where} {self.reason}"


class BadSamples(ConfigError):
    """Some of the samples that were asked for cannot be trained on."""

    def __init__(self, field: str, bad: Sequence[BadSample]) -> None:
        """`field` of the spec says where they are from; `bad` has at least one."""
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        super().__init__(
            f"{field}: {bad[0]}{more}; mend the data, or let spec.dataQuality.badSamples: skip leave such samples out"
        )
        self.field = field
        self.bad = tuple(bad)

    def renumbered(self, number: Callable[[int], int]) -> "BadSamples":
        """The same, for who has numbers of its own."""
        return BadSamples(self.field, [replace(bad, index=number(bad.index)) for bad in self.bad])


class Samples(Protocol):
    """Samples 0 … len - 1, each readable on its own. Reading is thread-safe and has no memory."""

    def __len__(self) -> int: ...

    def fetch(self, ids: Ids) -> tuple[Array, ...]:
        """Inputs [n, *sample] and targets of the samples `ids` [n], in that order, in fresh arrays; and, if
        `DataSpec.condition` says so, their conditions, float32 [n, condition].

        Images and features are float32 with int32 [n] class ids as targets; tokens are int32 [n, T] with the next
        tokens, int32 [n, T]. Images are height x width x channels (NHWC), as files and cameras have them.
        Raises BadSamples, with all of them that are bad, if the data itself breaks a rule that can only be seen by
        reading it.
        """
        ...


@dataclass(frozen=True, slots=True)
class DataSpec:
    """The facts of a dataset that decide a model's shapes."""

    kind: Literal["image", "vector", "tokens"]
    input_shape: tuple[int, ...]
    """Of one sample: (height, width, channels), (features,) or (sequence length,)."""
    outputs: int
    """Classes of an image or a vector; vocabulary of tokens."""
    fingerprint: str
    """`blake3:<hex>` of the contents, the same on every machine: two runs see the same samples in the same order if
    fingerprint, seed and batch agree. Of files over 64 MiB, and of folders, it covers sizes and some of the bytes."""
    end_of_text: int | None = None
    """The token after each document; None: nobody says, or there are no tokens."""
    condition: int = 0
    """Numbers that there are of each sample beside its input; 0: none."""

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.input_shape))
        noun = {"image": "images of", "vector": "vectors of", "tokens": "token sequences of"}[self.kind]
        return f"{noun} {shape}"


class Replaces(Protocol):
    """Samples that replace bad ones."""

    tell: Callable[[BadSample], None]
    """Called once for each that is met."""


class Changes(Protocol):
    """Something done to the inputs of a training batch."""

    def training(self, inputs: Array, keys: Keys, batch: int) -> Array:
        """Inputs [n, *sample] of batch number `batch` of the data order, whose samples have `keys` [n], as
        [n, *another]; the other shape follows from that number."""
        ...

    def largest(self, batch: int) -> int:
        """The number of a batch whose inputs are as large as any, from `batch` on."""
        ...


@dataclass(frozen=True, slots=True)
class Dataset:
    """Two disjoint sets of samples; which sample is in which follows from the seed alone."""

    train: Samples
    validation: Samples
    spec: DataSpec
    report: QualityReport | None = None
    """Of the look at it; None: nobody has looked."""
    replacing: tuple[Replaces, ...] = ()
    """Those parts of it that replace bad samples as they are met."""
    augment: Changes | None = None
    """What is done to the inputs of training batches; None: nothing."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Samples that are the rows of two arrays in memory."""

    inputs: Array
    targets: Array

    def __len__(self) -> int:
        return len(self.targets)

    def fetch(self, ids: Ids) -> tuple[Array, Array]:
        return self.inputs[ids], self.targets[ids]
