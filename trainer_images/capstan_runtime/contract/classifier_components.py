"""What a perceptron or a convolutional network may be given beside its shape: the presence of a record chooses it.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated

from pydantic import Field

from capstan_runtime.contract.base import Positive, Record
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
