"""What is trained: the architectures, and the components that each may be given.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import OneOf, Positive, Record, cel
from capstan_runtime.contract.decoder_components import (
    AdaptiveDropout,
    Alibi,
    Dropout,
    LayerScale,
    StochasticDepth,
    TemporalDropout,
    TokenDropout,
)


class Mlp(Record):
    """A multi-layer perceptron over flattened inputs, GELU between layers."""

    hidden: Annotated[
        list[Positive], Field(min_length=1, max_length=64, description="Width of each hidden layer, in units.")
    ]


DEFAULT_GROUPS = 8
_CEL_GROUPS = f"(has(self.groups) ? self.groups : {DEFAULT_GROUPS})"
"""In an element of a list the API server fills nothing in."""


class Cnn(Record):
    """A residual convolutional network over images.

    A 3x3 stem, then for each entry of `channels` one residual block of two 3x3 convolutions (stride 2 from the
    second entry on), global average pooling, and a linear classifier.
    """

    model_config = cel(
        (
            f"self.channels.all(c, c % {_CEL_GROUPS} == 0)",
            f"'groups ' + string({_CEL_GROUPS}) + ' does not divide every entry of channels; choose a common divisor'",
        )
    )

    channels: Annotated[
        list[Positive],
        Field(min_length=1, max_length=32, description="Output channels of each residual block, first to last."),
    ]
    groups: Annotated[
        int, Field(ge=1, description="Groups of the group normalisation; must divide every entry of channels.")
    ] = DEFAULT_GROUPS

    @model_validator(mode="after")
    def _groups_divide_channels(self) -> Self:
        for channels in self.channels:
            if channels % self.groups:
                raise ValueError(
                    f"groups {self.groups} does not divide {channels} of channels; choose a common divisor"
                )
        return self


class Transformer(Record):
    """A Llama-style decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases."""

    model_config = cel(
        (
            "!has(self.alibi) || self.dim % self.heads == 0",
            "'dim ' + string(self.dim) + ' is not a multiple of heads ' + string(self.heads) + '; choose a multiple'",
        ),
        (
            "has(self.alibi) || self.dim % (2 * self.heads) == 0",
            "'dim ' + string(self.dim) + ' is not an even multiple of heads ' + string(self.heads)"
            " + '; rotary positions turn pairs: choose a multiple of ' + string(2 * self.heads)",
        ),
        (
            "!has(self.kvHeads) || self.heads % self.kvHeads == 0",
            "'kvHeads ' + string(self.kvHeads) + ' does not divide heads ' + string(self.heads)",
        ),
        (
            "!has(self.tokenDropout) || self.layers >= 3",
            "'tokenDropout: no layer of ' + string(self.layers) + ' is between the first and the last, which take every"
            " token; choose 3 layers or more, or remove it'",
        ),
    )

    layers: Annotated[int, Field(ge=1, le=1024, description="Decoder blocks.")]
    dim: Annotated[int, Field(ge=8, description="Model width, in units; must be a multiple of heads.")]
    heads: Annotated[int, Field(ge=1, description="Query heads.")]
    kv_heads: Annotated[
        Positive | None, Field(description="Key and value heads; must divide heads. Left out: as many as heads.")
    ] = None
    hidden_dim: Annotated[
        Positive | None,
        Field(description="Width of the SwiGLU layer. Left out: 8/3 of dim, rounded up to a multiple of 32."),
    ] = None
    rope_theta: Annotated[float, Field(gt=0, description="Base of the rotary position frequencies.")] = 10000.0
    norm_epsilon: Annotated[float, Field(gt=0, description="Epsilon of RMSNorm.")] = 1e-5
    tied: Annotated[bool, Field(description="Share the embedding matrix with the output projection.")] = False
    alibi: Annotated[Alibi | None, Field(description="Linear biases of attention. Left out: rotary positions.")] = None
    layer_scale: Annotated[LayerScale | None, Field(description="Learnt factors of what branches add.")] = None
    dropout: Annotated[Dropout | None, Field(description="Left out: no element is dropped.")] = None
    temporal_dropout: Annotated[
        TemporalDropout | None, Field(description="Left out: no coordinate is dropped in a whole sequence.")
    ] = None
    adaptive_dropout: Annotated[
        AdaptiveDropout | None, Field(description="Left out: no unit of the SwiGLU layer is dropped.")
    ] = None
    token_dropout: Annotated[TokenDropout | None, Field(description="Left out: every layer takes every token.")] = None
    stochastic_depth: Annotated[StochasticDepth | None, Field(description="Left out: no branch is left out.")] = None

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.alibi is not None and self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}; choose a multiple")
        if self.alibi is None and self.dim % (2 * self.heads):
            raise ValueError(
                f"dim {self.dim} is not an even multiple of heads {self.heads}; "
                f"rotary positions turn pairs: choose a multiple of {2 * self.heads}"
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"kvHeads {self.kv_heads} does not divide heads {self.heads}")
        return self

    @model_validator(mode="after")
    def _components_fit(self) -> Self:
        if self.token_dropout is not None and self.layers < 3:
            raise ValueError(
                f"tokenDropout: no layer of {self.layers} is between the first and the last, which take every token; "
                "choose 3 layers or more, or remove it"
            )
        return self


class Model(OneOf):
    """The model's architecture. Set exactly one key. Input and output sizes follow from the data."""

    mlp: Annotated[Mlp | None, Field(description="A multi-layer perceptron.")] = None
    cnn: Annotated[Cnn | None, Field(description="A residual convolutional network, for images.")] = None
    transformer: Annotated[Transformer | None, Field(description="A Llama-style decoder, for tokens.")] = None
