"""What a decoder may be given beside its shape: each component is a record whose presence chooses it.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import Record, cel

Rate = Annotated[float, Field(gt=0.0, lt=1.0)]
_CEL_TOP_K = "(has(self.topK) ? self.topK : 2)"


class Alibi(Record):
    """Linear biases of attention in place of rotary positions (Press et al., 2108.12409).

    The score of a key falls with its distance, by a slope of each head. `ropeTheta` is of no effect then. The biases
    take memory: one number for each head and pair of positions, once for all layers.
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


class Dropless(Record):
    """Experts take every token that chooses them: none is dropped, and none is computed in vain."""


class Experts(Record):
    """A mixture of experts in place of every layer's SwiGLU layer: each token takes the few experts that a router
    chooses for it (Switch, 2101.03961; GShard, 2006.16668; ST-MoE, 2202.08906).

    An expert takes a limited number of tokens of each sequence, first come first served; a choice that finds it full
    adds nothing. The limit is counted in each sequence by itself, so it does not matter how a batch is cut. Where a
    model is served there is no limit.
    """

    model_config = cel(
        (
            f"{_CEL_TOP_K} <= self.count",
            f"'topK ' + string({_CEL_TOP_K}) + ' is above count ' + string(self.count) + '; lower topK'",
        ),
    )

    count: Annotated[int, Field(ge=2, le=1024, description="Experts of each layer.")]
    top_k: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="Experts that each token takes. Their shares are divided by their sum, but that of a single "
            "one is used as it is.",
        ),
    ] = 2
    capacity_factor: Annotated[
        float,
        Field(
            gt=0.0,
            le=1024.0,
            description="How many tokens of a sequence an expert takes in training: times sequence x topK / count, "
            "rounded up. Of no effect with dropless.",
        ),
    ] = 1.25
    eval_capacity_factor: Annotated[
        float, Field(gt=0.0, le=1024.0, description="The same where the model is evaluated.")
    ] = 2.0
    jitter: Annotated[
        float | None,
        Field(
            gt=0.0,
            lt=1.0,
            description="In training, what the router sees is multiplied by chance between 1 - jitter and 1 + jitter; "
            "Switch: 0.01. Left out: it is not.",
        ),
    ] = None
    auxiliary_loss: Annotated[
        float,
        Field(
            ge=0.0,
            description="Weight of the loss that spreads tokens evenly over the experts; it is 1 in each layer when "
            "they are.",
        ),
    ] = 0.01
    z_loss: Annotated[float, Field(ge=0.0, description="Weight of the loss that keeps the router's logits small.")] = (
        0.001
    )
    dropless: Annotated[
        Dropless | None,
        Field(
            description="Experts take all that choose them, as grouped products. Left out: they take as many as "
            "capacityFactor says."
        ),
    ] = None

    @model_validator(mode="after")
    def _chosen_are_there(self) -> Self:
        if self.top_k > self.count:
            raise ValueError(f"topK {self.top_k} is above count {self.count}; lower topK")
        return self


class Reversible(Record):
    """Layers whose inputs are computed again from their outputs, so that training keeps the activations of one layer
    however many there are (RevNet, 1707.04585; Reformer, 2001.04451).

    Two streams begin as the embeddings: attention of the second is added to the first, then the feed-forward layer of
    the first to the second. What comes out is their mean. Streams are fp32 in every precision.
    """
