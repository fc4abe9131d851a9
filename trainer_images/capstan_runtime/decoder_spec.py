"""What both frameworks must agree on about a decoder's components, in numbers.

Axes: L layers, N query heads, E experts.
"""

import math

import numpy as np
import numpy.typing as npt

from capstan_runtime.contract.decoder_components import Dropless, Experts, StochasticDepth
from capstan_runtime.contract.models import Model, Transformer


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


def expert_capacity(config: Experts, length: int, *, is_training: bool) -> int | None:
    """How many of a sequence's `length` tokens an expert takes; None: all that choose it. No token chooses an expert
    twice, so more than `length` places would stay empty."""
    if config.dropless is not None:
        return None
    factor = config.capacity_factor if is_training else config.eval_capacity_factor
    return min(length, math.ceil(factor * length * config.top_k / config.count))


def feed_forward_rows(config: Transformer, length: int) -> int:
    """How many tokens the feed-forward layers of one layer compute for a sequence that is evaluated, empty places of
    experts included."""
    if config.experts is None:
        return length
    capacity = expert_capacity(config.experts, length, is_training=False)
    return config.experts.top_k * length if capacity is None else config.experts.count * capacity


def as_served(model: Model) -> Model:
    """`model` as it answers requests: experts take what comes. A limit would make a token's answer depend on the other
    requests, and on how long a prompt is padded."""
    config = model.value
    if not isinstance(config, Transformer) or config.experts is None:
        return model
    experts = config.experts.model_copy(update={"dropless": Dropless()})
    return Model(transformer=config.model_copy(update={"experts": experts}))


def figures(model: Model, measured: npt.NDArray[np.floating]) -> dict[str, float]:
    """What is reported of what a step of `model` measured, flattened by name; empty if it measures nothing."""
    config = model.value
    if not isinstance(config, Transformer) or config.experts is None:
        return {}
    dropped_L, load = np.split(measured, [config.layers])
    return expert_figures(load.reshape(config.layers, config.experts.count), dropped_L)


def expert_figures(load_LE: npt.NDArray[np.floating], dropped_L: npt.NDArray[np.floating]) -> dict[str, float]:
    """What is reported of a step's experts.

    `expert_load_ratio`: the load of the busiest expert of any layer over that of all experts evenly, from 1 to E.
    `dropped_choice_ratio`: the share of all choices that found their expert full, 0 to 1.
    """
    return {
        "expert_load_ratio": float(load_LE.max() * load_LE.shape[-1]),
        "dropped_choice_ratio": float(dropped_L.mean()),
    }
