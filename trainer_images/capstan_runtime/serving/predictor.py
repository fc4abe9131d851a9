"""The seam between serving and the frameworks: what a loaded model must do, in numpy terms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from capstan_runtime.contract.signature import Signature


class Classifier(Protocol):
    """A model of images or vectors, its parameters verified and on the device. Deterministic: the same sample in the
    same batch size gives the same logits."""

    signature: Signature

    def warm(self, batch_sizes: Sequence[int]) -> None:
        """Compiles for these batch sizes; a batch of another size is padded to the next larger one of them."""
        ...

    def logits(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """[n, outputs] of `inputs` [n, *input_shape]. Not thread-safe: one call at a time."""
        ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 1.0
    """0: always the likeliest."""
    top_p: float = 1.0
    """Of the likeliest tokens whose probabilities add up to this, one is drawn."""
    seed: int = 0
    """The same seed, prompt and parameters give the same tokens."""


class Decoder(Protocol):
    """A model of tokens that continues sequences, up to `slots` of them at a time, each with its own key-value cache.

    A slot is free, or holds a sequence. `prefill` fills it, `step` adds one token to each of some slots, `release`
    frees it. So sequences join and leave while others are decoded (continuous batching).
    """

    signature: Signature
    slots: int
    context: int
    """Most tokens of a sequence, prompt included."""

    def warm(self) -> None:
        """Compiles everything that `prefill` and `step` will need."""
        ...

    def prefill(self, slot: int, prompt: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Logits [vocabulary] after `prompt` [T], 1 <= T < context, which slot `slot` holds from now on."""
        ...

    def step(self, slots: Sequence[int], tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Logits [n, vocabulary] after `tokens` [n] were added to the sequences of `slots` [n], all different."""
        ...

    def release(self, slot: int) -> None: ...
