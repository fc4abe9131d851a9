"""What a perceptron or a convolutional network may be given beside its shape: the presence of a record chooses it.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated

from pydantic import Field

from capstan_runtime.contract.base import OneOf, Positive, Record
from capstan_runtime.contract.decoder_components import Rate


class UnitDropout(Record):
    """Units are 0 with probability rate, in training (1207.0580). The others are divided by 1 - rate."""

    rate: Annotated[Rate, Field(description="Probability that a unit is dropped; 0.5 in the paper, 0.1 to 0.3 today.")]


class SpatialDropout(Record):
    """Dropout of whole channels of an image (1411.4280)."""

    rate: Annotated[Rate, Field(description="Probability that a channel of a sample is dropped; 0.1 is usual.")]


class SqueezeExcitation(Record):
    """Each channel is scaled by a gate that sees the means of all channels (1709.01507)."""

    reduction: Annotated[
        Positive, Field(description="Channels for each hidden unit of the gate, which has at least one unit.")
    ] = 16


class FourierFeatures(Record):
    """Inputs x become cos(2 pi B x) and sin(2 pi B x), B drawn from the seed and never trained (2006.10739)."""

    count: Annotated[Positive, Field(description="Rows of B: there are twice as many features.")] = 256
    scale: Annotated[
        float,
        Field(gt=0.0, description="Standard deviation of B's elements: how fine the details are; tune it to the data."),
    ] = 10.0


class Film(Record):
    """Feature-wise linear modulation (1709.07871): channels are scaled and shifted as the sample's condition says, by a
    layer that starts at zero, where they stay as they are."""


class ConditionalScaling(OneOf):
    """How a sample's condition scales features. Set exactly one key."""

    film: Annotated[Film | None, Field(description="A factor and a shift for each channel, made of the condition.")] = (
        None
    )


class AdaLnZero(Record):
    """Adaptive layer normalisation with gates (DiT, 2212.09748): a block's input is normalised, scaled and shifted as
    the sample's condition says, and a gate scales what the block adds. All start at zero: the block adds nothing."""

    epsilon: Annotated[float, Field(gt=0.0, description="Added to the variance.")] = 1e-6


class AdaIn(Record):
    """Adaptive instance normalisation (1703.06868): mean and deviation of each channel of what a block adds become
    those that the sample's condition says, at first 0 and 1."""

    epsilon: Annotated[float, Field(gt=0.0, description="Added to the variance.")] = 1e-5


class AdaptiveNorm(OneOf):
    """Normalisation whose scale and shift a sample's condition makes. Set exactly one key."""

    ada_ln_zero: Annotated[
        AdaLnZero | None, Field(description="Of each block's input, with a gate on what the block adds (DiT).")
    ] = None
    ada_in: Annotated[AdaIn | None, Field(description="Of what each block adds, over its positions (AdaIN).")] = None
