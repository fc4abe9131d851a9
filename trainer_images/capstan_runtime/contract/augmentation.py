"""How pictures are changed on their way to the model.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import Positive, Record, cel


class Flip(Record):
    """Mirrors a picture."""

    probability: Annotated[float, Field(gt=0.0, le=1.0, description="Share of the pictures that are mirrored.")] = 0.5


class RandomCrop(Record):
    """Moves a picture by up to `padding` pixels each way: it is padded with zeros and cut to its size again, as for
    CIFAR in He et al. (arXiv 1512.03385)."""

    padding: Annotated[int, Field(ge=1, le=512, description="Pixels added on each side before the cut.")]


class Normalize(Record):
    """(value - mean) / std of each channel: of training, of validation, and of every service of the model."""

    model_config = cel(
        (
            "size(self.mean) == size(self.std)",
            "'mean has ' + string(size(self.mean)) + ' entries and std ' + string(size(self.std))"
            " + '; give one of each per channel'",
        )
    )

    mean: Annotated[
        list[float], Field(min_length=1, max_length=64, description="Of each channel, on the scale of the samples.")
    ]
    std: Annotated[
        list[Annotated[float, Field(gt=0.0)]],
        Field(min_length=1, max_length=64, description="Of each channel, on the scale of the samples."),
    ]

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} entries and std {len(self.std)}; give one of each per channel")
        return self


class MultiScale(Record):
    """Trains on one size after another, chosen by seed and step alone, as in YOLO9000 (arXiv 1612.08242). Validation
    keeps the size of the data. Flax compiles for each size when it first comes: where that takes longer than
    recovery.deadlines.hang, raise that."""

    sizes: Annotated[
        list[Positive],
        Field(min_length=2, max_length=16, description="Heights and widths, in pixels; one is drawn at a time."),
    ]
    every_steps: Annotated[int, Field(ge=1, description="Steps until another size is drawn.")] = 10


class Augmentation(Record):
    """How pictures are changed before a step, in this order. What is drawn follows from the seed, the step and the
    sample alone: it is the same for every number of workers. What is left out does not happen."""

    horizontal_flip: Annotated[Flip | None, Field(description="Left and right change places.")] = None
    vertical_flip: Annotated[Flip | None, Field(description="Top and bottom change places.")] = None
    random_crop: Annotated[RandomCrop | None, Field(description="The picture is moved a little.")] = None
    multi_scale: Annotated[MultiScale | None, Field(description="The size changes from time to time.")] = None
    normalize: Annotated[
        Normalize | None, Field(description="Channels are shifted and scaled; in validation and serving, too.")
    ] = None
