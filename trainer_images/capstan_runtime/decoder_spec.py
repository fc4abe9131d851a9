"""What both frameworks must agree on about a decoder's components, in numbers.

Axes: L layers, N query heads.
"""

import math

import numpy as np
import numpy.typing as npt

from capstan_runtime.contract.decoder_components import StochasticDepth


def alibi_slopes(heads: int) -> npt.NDArray[np.float32]:
    """How much a score falls with each token of distance, fp32 [N] (Press et al., 2108.12409, and their code).

    Powers of 2^(-8 / N) where N is a power of two. Elsewhere those of the power of two below, then every second one of
    those of the power of two above.
    """
    below = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8.0 * head / below) for head in range(1, below + 1)]
    between = [2.0 ** (-4.0 * head / below) for head in range(1, 2 * below, 2)]
    return np.asarray([*slopes, *between[: heads - below]], np.float32)


def depth_rates(config: StochasticDepth, layers: int) -> npt.NDArray[np.float32]:
    """With what probability the branches of each layer are left out, fp32 [L]: from 0 for what goes into the first
    layer to `rate` of the last (Huang et al., 1603.09382)."""
    return (config.rate * np.arange(1, layers + 1, dtype=np.float64) / layers).astype(np.float32)


def taken_tokens(keep: float, length: int) -> int:
    """How many of `length` tokens a layer that drops tokens takes: at least one."""
    return max(1, math.floor(keep * length + 0.5))
