"""What a dataset is to the rest of the runtime."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Ids = npt.NDArray[np.int64]


class Samples(Protocol):
    """Samples 0 … len - 1, each readable on its own. Reading is thread-safe and has no memory."""

    def __len__(self) -> int: ...

    def fetch(self, ids: Ids) -> tuple[Array, Array]:
        """Inputs [n, *sample] and targets of the samples `ids` [n], in that order, in fresh arrays.

        Images and features are float32 with int32 [n] class ids as targets; tokens are int32 [n, T] with the next
        tokens, int32 [n, T]. Images are height x width x channels (NHWC), as files and cameras have them.
        Raises ConfigError if the data itself breaks a rule that can only be seen by reading it.
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

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.input_shape))
        noun = {"image": "images of", "vector": "vectors of", "tokens": "token sequences of"}[self.kind]
        return f"{noun} {shape}"


@dataclass(frozen=True, slots=True)
class Dataset:
    """Two disjoint sets of samples; which sample is in which follows from the seed alone."""

    train: Samples
    validation: Samples
    spec: DataSpec


@dataclass(frozen=True, slots=True)
class Rows:
    """Samples that are the rows of two arrays in memory."""

    inputs: Array
    targets: Array

    def __len__(self) -> int:
        return len(self.targets)

    def fetch(self, ids: Ids) -> tuple[Array, Array]:
        return self.inputs[ids], self.targets[ids]
