"""MixUp and CutMix: samples made of two, as a pure function of their keys.

Partners come from the same virtual rank's slice of the batch, so that they are the same for every number of workers and
of micro-steps. Axes: S samples of one slice, H and W height and width of an image, C channels.
"""

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from capstan_runtime import randomness
from capstan_runtime.contract.losses import Regularization
from capstan_runtime.data.spec import Array
from capstan_runtime.engine import Batch
from capstan_runtime.errors import ConfigError
from capstan_runtime.randomness import Keys

Floats = npt.NDArray[np.float32]


def mixes(config: Regularization | None) -> bool:
    """Whether a run's samples are made of two."""
    return config is not None and (config.mixup is not None or config.cutmix is not None)


def mix_batch(batch: Batch, samples_per_slice: int, config: Regularization) -> Batch:
    """The batch [M, b] of whole slices with every sample made of two. Raises ConfigError if these are no images and
    `cutmix` is set."""
    assert batch.keys is not None
    micro_steps = batch.targets.shape
    sample = batch.inputs.shape[2:]
    if config.cutmix is not None and len(sample) != 3:
        raise ConfigError("spec.regularization: cutmix pastes boxes of images, and these are none; choose mixup")
    slices = zip(
        batch.inputs.reshape(-1, samples_per_slice, *sample),
        batch.targets.reshape(-1, samples_per_slice),
        batch.keys.reshape(-1, samples_per_slice),
        strict=True,
    )
    mixed = [mix(inputs, targets, keys_S, config) for inputs, targets, keys_S in slices]
    inputs, second_targets, shares = (np.concatenate(parts) for parts in zip(*mixed, strict=True))
    return batch._replace(
        inputs=inputs.reshape(batch.inputs.shape),
        second_targets=second_targets.reshape(micro_steps),
        shares=shares.reshape(micro_steps),
    )


def mix(inputs: Array, targets: Array, keys_S: Keys, config: Regularization) -> tuple[Array, Array, Floats]:
    """Inputs [S, *sample] made of two, the second's targets [S], and the first's share of the target, float32 [S].

    `inputs` are fp32, and images where `cutmix` is set. A sample may be its own partner, and stays as it is then.
    """
    chance = randomness.uniform(randomness.at(keys_S, randomness.site("mixing")), 5)
    partners = np.minimum((chance[:, 0] * len(inputs)).astype(np.int64), len(inputs) - 1)
    is_cut = _chooses_cutmix(config, chance[:, 1])
    shares = np.ones(len(inputs), np.float32)
    floats = inputs.astype(np.float32, copy=False)
    mixed = floats.copy()
    if config.mixup is not None and not is_cut.all():
        blended = ~is_cut
        shares[blended] = _beta(config.mixup.alpha, chance[blended, 2])
        own = shares[blended].reshape(-1, *[1] * (inputs.ndim - 1))
        mixed[blended] = own * floats[blended] + (1 - own) * floats[partners[blended]]
    if config.cutmix is not None and is_cut.any():
        boxes = _boxes(1 - _beta(config.cutmix.alpha, chance[is_cut, 2]), chance[is_cut, 3:], inputs.shape[1:3])
        mixed[is_cut] = np.where(boxes[..., None], floats[partners[is_cut]], floats[is_cut])
        shares[is_cut] = 1 - boxes.mean(axis=(1, 2), dtype=np.float32)
    return mixed, targets[partners], shares


def _chooses_cutmix(config: Regularization, chance_S: Floats) -> npt.NDArray[np.bool_]:
    """Half of the samples where both are set."""
    if config.mixup is not None and config.cutmix is not None:
        return chance_S < 0.5
    return np.full(len(chance_S), config.cutmix is not None)


def _beta(alpha: float, chance_S: Floats) -> Floats:
    """Draws from Beta(alpha, alpha), by the inverse of its distribution function."""
    return betaincinv(alpha, alpha, chance_S.astype(np.float64)).astype(np.float32)


def _boxes(areas_S: Floats, centres_S2: Floats, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Which pixels are in each box, [S, H, W]: of the image's proportions and about `areas_S` of its area, centred
    anywhere in it and cut off at its edges."""
    sides = np.sqrt(areas_S)
    inside = []
    for axis, length in enumerate(size):
        centre, half = (centres_S2[:, axis] * length).astype(np.int64), (sides * length).astype(np.int64) // 2
        first, last = np.maximum(centre - half, 0), np.minimum(centre + half, length)
        places = np.arange(length)
        inside.append((places >= first[:, None]) & (places < last[:, None]))
    return inside[0][:, :, None] & inside[1][:, None, :]
