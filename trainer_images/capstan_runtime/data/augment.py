"""Pictures, changed before a step: by the host, on the thread that reads ahead.

All that is drawn follows from the samples' keys (`randomness.py`), so from seed, batch and sample: it is the same
wherever, and among whichever others, a sample is read.
"""

import itertools
from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from capstan_runtime.contract.augmentation import Augmentation, Normalize
from capstan_runtime.data.spec import Array, Dataset, DataSpec, Ids, Samples
from capstan_runtime.errors import ConfigError
from capstan_runtime.randomness import Keys, at, sample_keys, site, uniform

Pictures = npt.NDArray[np.float32]
"""[n, height, width, channels]"""

_LEFT_RIGHT = site("augmentation.horizontalFlip")
_TOP_BOTTOM = site("augmentation.verticalFlip")
_CROP = site("augmentation.randomCrop")
_SIZE = site("augmentation.multiScale")


def augmented(dataset: Dataset, config: Augmentation | None, seed: int) -> Dataset:
    """`dataset` whose training samples are to be changed as `config` says, and whose others are as a model outside of
    training has them. Raises ConfigError if the data is not made of pictures, or of others than the means are for."""
    if config is None:
        return dataset
    augment = Augment(config, dataset.spec, seed)
    return replace(dataset, validation=Normalized(dataset.validation, augment), augment=augment)


class Augment:
    """What `spec.augmentation` asks for, in the order in which it names it."""

    def __init__(self, config: Augmentation, spec: DataSpec, seed: int) -> None:
        """Raises as `augmented`."""
        if spec.kind != "image":
            raise ConfigError(f"spec.augmentation: changes pictures, and the data is {spec}; remove it")
        require_channels(config.normalize, spec.input_shape[-1])
        self._config = config
        self._seed = seed

    def training(self, inputs: Array, keys: Keys, batch: int) -> Pictures:
        """See `Changes.training`. Never changes what it is given."""
        config, pictures = self._config, inputs.astype(np.float32, copy=False)
        if config.horizontal_flip is not None:
            pictures = _mirrored(pictures, at(keys, _LEFT_RIGHT), config.horizontal_flip.probability, axis=2)
        if config.vertical_flip is not None:
            pictures = _mirrored(pictures, at(keys, _TOP_BOTTOM), config.vertical_flip.probability, axis=1)
        if config.random_crop is not None:
            pictures = _moved(pictures, at(keys, _CROP), config.random_crop.padding)
        if config.multi_scale is not None:
            pictures = resized(pictures, self.size_of(batch))
        return self.always(pictures)

    def always(self, pictures: Pictures) -> Pictures:
        """What is done to pictures outside of training, too."""
        return normalized(pictures, self._config.normalize) if self._config.normalize is not None else pictures

    def largest(self, batch: int) -> int:
        """See `Changes.largest`."""
        scale = self._config.multi_scale
        if scale is None:
            return batch
        return next(n for n in itertools.count(batch, scale.every_steps) if self.size_of(n) == max(scale.sizes))

    def size_of(self, batch: int) -> int:
        """Height and width of the pictures of that batch. All ranks draw the same."""
        scale = self._config.multi_scale
        assert scale is not None, "the size does not change"
        key = sample_keys(self._seed, batch // scale.every_steps, np.zeros(1, np.int64))
        return scale.sizes[int(uniform(at(key, _SIZE))[0] * len(scale.sizes))]


class Normalized:
    """Samples as a model outside of training has them."""

    def __init__(self, samples: Samples, augment: Augment) -> None:
        self._samples = samples
        self._augment = augment

    def __len__(self) -> int:
        return len(self._samples)

    def fetch(self, ids: Ids) -> tuple[Array, ...]:
        inputs, *others = self._samples.fetch(ids)
        return self._augment.always(inputs.astype(np.float32, copy=False)), *others


def require_channels(normalize: Normalize | None, channels: int) -> None:
    """Raises ConfigError unless there is a mean for each of so many channels."""
    if normalize is not None and len(normalize.mean) != channels:
        raise ConfigError(
            f"spec.augmentation.normalize: has {len(normalize.mean)} channels and the data {channels}; give one mean "
            "and one std for each channel"
        )


def normalized(pictures: Pictures, by: Normalize) -> Pictures:
    """(value - mean) / std of each channel."""
    mean, std = np.asarray(by.mean, np.float32), np.asarray(by.std, np.float32)
    return (pictures - mean) / std


def resized(pictures: Pictures, size: int) -> Pictures:
    """[n, size, size, channels]: a triangle filter, as wide as two pixels of whichever picture is smaller, which is
    linear interpolation where pictures grow and has no aliases where they shrink."""
    _, height, width, _ = pictures.shape
    if (height, width) == (size, size):
        return pictures
    planes = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    # Plane by plane: products of one shape, whose sums are the same among whichever other pictures.
    planes = np.matmul(np.matmul(_filter(height, size), planes), _filter(width, size).T)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


@lru_cache(maxsize=64)
def _filter(before: int, after: int) -> npt.NDArray[np.float32]:
    """[after, before]: what each pixel of the one is made of. Rows add up to 1."""
    scale = before / after
    support = max(scale, 1.0)
    centers = (np.arange(after) + 0.5) * scale
    distances = np.abs(np.arange(before) + 0.5 - centers[:, None]) / support
    weights = np.maximum(0.0, 1.0 - distances)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _mirrored(pictures: Pictures, keys: Keys, probability: float, axis: int) -> Pictures:
    chosen = uniform(keys) < probability
    changed = pictures.copy()
    changed[chosen] = np.flip(pictures[chosen], axis)
    return changed


def _moved(pictures: Pictures, keys: Keys, padding: int) -> Pictures:
    _, height, width, _ = pictures.shape
    padded = np.pad(pictures, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    starts = (uniform(keys, 2) * (2 * padding + 1)).astype(np.int64)
    changed = np.empty_like(pictures)
    for row, (top, left) in enumerate(starts):
        changed[row] = padded[row, top : top + height, left : left + width]
    return changed
