"""From `spec.data` to samples: finds and checks the data before any training starts."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from capstan_runtime.contract.data import Arrays, Data, Digits, Text, Tokens
from capstan_runtime.data.arrays import open_arrays
from capstan_runtime.data.digits import open_digits
from capstan_runtime.data.plan import Permutation
from capstan_runtime.data.spec import Array, Dataset, DataSpec, Ids, Samples
from capstan_runtime.data.tokens import open_text, open_tokens
from capstan_runtime.errors import ConfigError

_SPLIT = 0x5B11
"""Keeps the permutation that splits apart from those that order the epochs, which share the seed."""


@dataclass(frozen=True, slots=True)
class _HeldOut:
    """The samples `chosen` [n], ascending."""

    samples: Samples
    chosen: Ids

    def __len__(self) -> int:
        return len(self.chosen)

    def fetch(self, ids: Ids) -> tuple[Array, Array]:
        return self.samples.fetch(self.chosen[ids])


class _Rest:
    """All samples but `without` [n], ascending: a table of the few instead of one of the many."""

    def __init__(self, samples: Samples, without: Ids) -> None:
        self._samples = samples
        self._kept_before = without - np.arange(len(without))
        """How many kept samples come before each one left out."""

    def __len__(self) -> int:
        return len(self._samples) - len(self._kept_before)

    def fetch(self, ids: Ids) -> tuple[Array, Array]:
        return self._samples.fetch(ids + np.searchsorted(self._kept_before, ids, side="right"))


def open_dataset(data: Data, seed: int, environ: Mapping[str, str]) -> Dataset:
    """The samples of `data`, split into training and validation by `seed` alone: the world size plays no part.

    `environ` tells where the pod's paths really are (`contract.env.host_path`). Raises ConfigError, naming the field,
    its value, the rule it breaks and the remedy, for missing files, shapes and types that do not fit, labels or tokens
    out of range, and sets too small to split.
    """
    samples, spec = _open(data, environ)
    fraction: float = data.value.validation_fraction
    held_out = max(1, round(len(samples) * fraction))
    if held_out >= len(samples):
        raise ConfigError(
            f"spec.data.{data.kind}.validationFraction: {fraction} of {len(samples)} samples leaves none to train on; "
            "give more data or a smaller fraction"
        )
    order = Permutation(len(samples), seed, _SPLIT)
    chosen = np.sort(order(np.arange(held_out, dtype=np.int64)))
    return Dataset(train=_Rest(samples, chosen), validation=_HeldOut(samples, chosen), spec=spec)


def _open(data: Data, environ: Mapping[str, str]) -> tuple[Samples, DataSpec]:
    match data.value:
        case Digits():
            return open_digits()
        case Arrays() as config:
            return open_arrays(config, environ)
        case Text() as config:
            return open_text(config, environ)
        case Tokens() as config:
            return open_tokens(config, environ)
        case other:  # pragma: no cover - a new kind of data without a reader
            raise TypeError(f"no reader for {type(other).__name__}")
