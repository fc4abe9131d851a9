"""What a decoder may be given beside its shape: each component is a record whose presence chooses it.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated

from pydantic import Field

from capstan_runtime.contract.base import Record

Rate = Annotated[float, Field(gt=0.0, lt=1.0)]


class Alibi(Record):
    """Linear biases of attention in place of rotary positions (Press et al., 2108.12409).

    The score of a key falls with its distance, by a slope of each head. `ropeTheta` is of no effect then.
    """


class LayerScale(Record):
    """A learnt factor for every coordinate of what a residual branch adds (CaiT, 2103.17239)."""

    initial: Annotated[
        float,
        Field(gt=0.0, le=1.0, description="First value of every factor; CaiT: 0.1 up to 18 layers, 1e-5 at 24."),
    ] = 1e-4


class Dropout(Record):
    """Elements of the embeddings and of what each residual branch adds are 0 with probability rate, in training
    (1207.0580; there as in 1706.03762). The others are divided by 1 - rate."""

    rate: Annotated[Rate, Field(description="Probability that an element is dropped; 0.1 is usual.")]


class TemporalDropout(Record):
    """Dropout whose mask is the same at every position of a sequence (variational dropout, 1512.05287)."""

    rate: Annotated[Rate, Field(description="Probability that a coordinate is dropped in a whole sequence.")]


class AdaptiveDropout(Record):
    """Dropout whose rate is learnt, for each unit and input (standout: Ba and Frey, NIPS 2013).

    A unit of the SwiGLU layer is kept with probability sigmoid(scale x gate + shift) of its own gate, so the rates are
    made of weights that are there anyway. Where nothing is random the unit is multiplied by that probability.
    """

    scale: Annotated[float, Field(description="Factor of the gate: 0 makes every rate the same.")] = 1.0
    shift: Annotated[float, Field(description="Added to it: 2 keeps 88 % of the units whose gate is 0.")] = 0.0


class TokenDropout(Record):
    """Every layer but the first and the last skips tokens in training: each takes tokens of its own choice, of every
    sequence as many, and the others pass it by unchanged (random-LTD, 2211.11586; PatchDropout, 2208.07220).

    Tokens that are taken keep their positions and see those before them that are taken too. Nothing is skipped where
    the model is evaluated or served.
    """

    keep: Annotated[
        Rate, Field(description="Share of a sequence's tokens that a layer takes, rounded to whole tokens.")
    ]


class StochasticDepth(Record):
    """Residual branches are left out in training, for each sample and branch by chance (1603.09382).

    The probability grows linearly with the depth, to rate in the last layer; a branch that stays is divided by the
    probability that it does.
    """

    rate: Annotated[Rate, Field(description="Probability that a branch of the last layer is left out; 0.1 is usual.")]
