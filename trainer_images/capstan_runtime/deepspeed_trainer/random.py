"""`capstan_runtime.randomness` for torch: the same bits. Axes: B samples.

torch does no arithmetic on uint32: words are int64 below 2^32. Of a product only the lower half is wanted, and that is
right although the upper one overflows.
"""

import math

import numpy as np
import torch
from torch import Tensor

from capstan_runtime import randomness
from capstan_runtime.randomness import FIRST_FACTOR, SECOND_FACTOR, STRIDE, UNIT

_WORD = (1 << 32) - 1


def mix(words: Tensor) -> Tensor:
    """The hash of each word, same shape."""
    words = ((words ^ (words >> 16)) * FIRST_FACTOR) & _WORD
    words = ((words ^ (words >> 13)) * SECOND_FACTOR) & _WORD
    return words ^ (words >> 16)


def at(keys_B: Tensor, place: int) -> Tensor:
    """The keys of `place`, the number of a site or of a layer, [B]."""
    number = int(randomness.mix(np.asarray([place * STRIDE & _WORD], np.uint32))[0])
    return mix(keys_B ^ number)


def uniform(keys_B: Tensor, *shape: int, first: int = 0, row: int | None = None) -> Tensor:
    """Numbers in [0, 1), float32 [B, *shape]. Where others have the rest: `first` is the number of the first element
    and, where two dimensions are a part of wider rows, `row` how far the next of these is."""
    numbers = torch.arange(math.prod(shape), device=keys_B.device).view(shape)
    if row is not None:
        numbers = numbers + (row - shape[1]) * torch.arange(shape[0], device=keys_B.device)[:, None]
    elements = mix(((numbers + first) * STRIDE) & _WORD)
    words = mix(keys_B.view(-1, *[1] * len(shape)) ^ elements)
    return (words >> 8).float() * UNIT


def named(keys_B: Tensor, name: str) -> Tensor:
    """The keys of the place called `name`."""
    return at(keys_B, randomness.site(name))
