"""What the predictors of both frameworks have in common: which batch sizes are warm, and which slot holds how much.

They promise what `serving.predictor` asks of them; arguments that break a rule raise ValueError before anything is
computed.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Inputs = npt.NDArray[np.float32]
Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]


def powers_of_two(least: int, most: int) -> list[int]:
    """From `least` on, and `most` itself at the end, whether it is one or not.

    >>> powers_of_two(16, 100)
    [16, 32, 64, 100]
    """
    sizes = []
    while least < most:
        sizes.append(least)
        least *= 2
    return [*sizes, most]


class WarmBatches:
    """Any batch, computed in the sizes for which a classifier is warm: padded to the next larger one, or in parts of
    the largest. So a batch is computed by one of few programs, none of which is compiled while somebody waits."""

    def __init__(self, sample_shape: tuple[int, ...]) -> None:
        self._sample_shape = sample_shape
        self._sizes: list[int] = []

    def add(self, sizes: Sequence[int]) -> list[Inputs]:
        """A batch of zeros for each size that is new; whoever calls computes them all."""
        if not sizes or min(sizes) < 1:
            raise ValueError(f"batch sizes {list(sizes)}: give one or more, each at least 1")
        new = sorted(set(sizes) - set(self._sizes))
        self._sizes = sorted({*self._sizes, *new})
        return [self._zeros(size) for size in new]

    def compute(self, inputs: Inputs, program: Callable[[Inputs], Logits]) -> Logits:
        """[n, outputs] of `inputs` [n, *sample], by `program`, which is only given warm sizes."""
        if inputs.shape[1:] != self._sample_shape or inputs.dtype != np.float32:
            expected = " x ".join(map(str, self._sample_shape))
            raise ValueError(f"inputs are {inputs.dtype} of shape {inputs.shape}; float32 of n x {expected} expected")
        if not self._sizes:
            raise ValueError("no batch size is warm; call warm first")
        largest = self._sizes[-1]
        if len(inputs) <= largest:
            return self._padded(inputs, program)
        parts = (inputs[at : at + largest] for at in range(0, len(inputs), largest))
        return np.concatenate([self._padded(part, program) for part in parts])

    def _padded(self, inputs: Inputs, program: Callable[[Inputs], Logits]) -> Logits:
        count = len(inputs)
        size = self._sizes[bisect_left(self._sizes, count)]
        if count == size:
            return program(np.ascontiguousarray(inputs))
        batch = self._zeros(size)
        batch[:count] = inputs
        return program(batch)[:count]

    def _zeros(self, size: int) -> Inputs:
        return np.zeros((size, *self._sample_shape), np.float32)


class Sequences:
    """How many tokens each slot of a decoder holds; none: it is free."""

    def __init__(self, slots: int, context: int, vocabulary: int) -> None:
        if slots < 1 or context < 2:
            raise ValueError(f"{slots} slots of {context} tokens: at least 1 slot of 2 tokens expected")
        self.context = context
        self._vocabulary = vocabulary
        self._lengths = np.zeros(slots, np.int32)

    def require_fits(self, slot: int, prompt: Tokens) -> None:
        """Whether `prompt` may be put into `slot`; raises ValueError."""
        if self._length(slot) > 0:
            raise ValueError(f"slot {slot} holds a sequence; release it first")
        if prompt.ndim != 1 or not 1 <= len(prompt) < self.context:
            raise ValueError(f"a prompt of shape {prompt.shape}; between 1 and {self.context - 1} tokens expected")
        self._require_known(prompt)

    def fill(self, slot: int, length: int) -> None:
        self._lengths[slot] = length

    def require_extensible(self, slots: Sequence[int], tokens: Tokens) -> None:
        """Whether each of `slots` may take one more token; raises ValueError."""
        if not slots or len(set(slots)) != len(slots) or tokens.shape != (len(slots),):
            raise ValueError(
                f"slots {list(slots)} and tokens of shape {tokens.shape}: one token for each slot expected"
            )
        for slot in slots:
            if not 0 < self._length(slot) < self.context:
                raise ValueError(f"slot {slot} holds {self._lengths[slot]} of {self.context} tokens; none can be added")
        self._require_known(tokens)

    def in_every_slot(self, slots: Sequence[int], tokens: Tokens) -> tuple[Tokens, Tokens]:
        """Tokens [all slots], 0 where none is added, and the position [all slots] where each slot's next token goes.

        So whatever is computed for a slot that is not among `slots` lands where its own next token will overwrite it
        before anybody looks; a full slot has no next token, and nobody looks at its last any more.
        """
        everywhere = np.zeros_like(self._lengths)
        everywhere[list(slots)] = tokens
        return everywhere, np.minimum(self._lengths, self.context - 1)

    def extend(self, slots: Sequence[int]) -> None:
        self._lengths[list(slots)] += 1

    def release(self, slot: int) -> None:
        """Harmless if it is free."""
        self._length(slot)
        self._lengths[slot] = 0

    def forget_all(self) -> None:
        """Every slot is free."""
        self._lengths[:] = 0

    def _length(self, slot: int) -> int:
        if not 0 <= slot < len(self._lengths):
            raise ValueError(f"slot {slot}: there are slots 0 to {len(self._lengths) - 1}")
        return int(self._lengths[slot])

    def _require_known(self, tokens: Tokens) -> None:
        if tokens.min() < 0 or tokens.max() >= self._vocabulary:
            raise ValueError(f"tokens from {tokens.min()} to {tokens.max()}; each must be below {self._vocabulary}")
