"""What is trained: the architectures, and the components that each may be given.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import OneOf, Positive, Record, cel
from capstan_runtime.contract.classifier_components import (
    AdaptiveNorm,
    ConditionalScaling,
    FourierFeatures,
    SpatialDropout,
    SqueezeExcitation,
    UnitDropout,
)
from capstan_runtime.contract.custom_model import Custom
from capstan_runtime.contract.decoder_components import (
    AdaptiveDropout,
    Alibi,
    Dropout,
    Experts,
    LayerScale,
    Reversible,
    StochasticDepth,
    TemporalDropout,
    TokenDropout,
)
from capstan_runtime.contract.normalisation import DEFAULT_GROUPS, AnyNorm, CnnNorm, GroupNorm, MlpNorm

# In an element of a list the API server fills nothing in.
_CEL_GROUPS = f"(has(self.groups) ? self.groups : {DEFAULT_GROUPS})"
_CEL_NORM_GROUPS = f"(has(self.norm.group.groups) ? self.norm.group.groups : {DEFAULT_GROUPS})"


def _groups_rule(widths: str, holds_if: str, groups: str) -> tuple[str, str]:
    """The twin of `_require_divisor`: where `holds_if`, `groups` divides every entry of list `widths`."""
    field = "norm.group.groups" if groups == _CEL_NORM_GROUPS else "groups"
    return (
        f"!({holds_if}) || self.{widths}.all(c, c % {groups} == 0)",
        f"'{field} ' + string({groups}) + ' does not divide every entry of {widths}; choose a common divisor'",
    )


def _require_divisor(field: str, groups: int, widths_field: str, widths: list[int]) -> None:
    for width in widths:
        if width % groups:
            raise ValueError(f"{field} {groups} does not divide {width} of {widths_field}; choose a common divisor")


class Mlp(Record):
    """A multi-layer perceptron over flattened inputs, GELU between layers."""

    model_config = cel(_groups_rule("hidden", "has(self.norm) && has(self.norm.group)", _CEL_NORM_GROUPS))

    hidden: Annotated[
        list[Positive], Field(min_length=1, max_length=64, description="Width of each hidden layer, in units.")
    ]
    norm: Annotated[
        MlpNorm | None, Field(description="Normalisation of each hidden layer, before GELU. Left out: none.")
    ] = None
    dropout: Annotated[
        UnitDropout | None, Field(description="Dropout of units after each hidden layer. Left out: none.")
    ] = None
    fourier_features: Annotated[
        FourierFeatures | None,
        Field(description="Waves of the inputs in place of the inputs, for fine details. Left out: the inputs."),
    ] = None
    conditional_scaling: Annotated[
        ConditionalScaling | None,
        Field(description="Hidden layers, before GELU, are scaled by each sample's condition. Left out: not."),
    ] = None

    @model_validator(mode="after")
    def _groups_divide_hidden(self) -> Self:
        if self.norm is not None and self.norm.group is not None:
            _require_divisor("norm.group.groups", self.norm.group.groups, "hidden", self.hidden)
        return self


class Cnn(Record):
    """A residual convolutional network over images.

    A 3x3 stem, then for each entry of `channels` a stage of residual blocks of two 3x3 convolutions (the first one of
    each stage but the first halves the image), global average pooling, and a linear classifier.
    """

    model_config = cel(
        _groups_rule("channels", "!has(self.norm)", _CEL_GROUPS),
        _groups_rule("channels", "has(self.norm) && has(self.norm.group)", _CEL_NORM_GROUPS),
    )

    channels: Annotated[
        list[Positive],
        Field(min_length=1, max_length=32, description="Output channels of each stage, first to last."),
    ]
    blocks_per_stage: Annotated[
        int | None,
        Field(ge=1, le=64, description="Residual blocks of each stage; 2 of four stages make ResNet-18. Left out: 1."),
    ] = None
    groups: Annotated[
        int,
        Field(
            ge=1,
            description="Groups of the group normalisation that there is when norm is left out; must then divide every "
            "entry of channels.",
        ),
    ] = DEFAULT_GROUPS
    norm: Annotated[
        CnnNorm | None, Field(description="Normalisation after each convolution. Left out: group, with groups.")
    ] = None
    squeeze_excitation: Annotated[
        SqueezeExcitation | None,
        Field(description="Gates on the channels of what each residual block adds. Left out: none."),
    ] = None
    layer_scale: Annotated[
        LayerScale | None,
        Field(description="A learnt factor for each channel of what each residual block adds. Left out: none."),
    ] = None
    stochastic_depth: Annotated[
        StochasticDepth | None,
        Field(description="Residual blocks are skipped by chance, in training, later ones more often. Left out: none."),
    ] = None
    spatial_dropout: Annotated[
        SpatialDropout | None,
        Field(description="Dropout of channels between the two convolutions of each block. Left out: none."),
    ] = None
    dropout: Annotated[
        UnitDropout | None, Field(description="Dropout of units before the classifier. Left out: none.")
    ] = None
    conditional_scaling: Annotated[
        ConditionalScaling | None,
        Field(description="What each residual block adds is scaled by each sample's condition. Left out: not."),
    ] = None
    adaptive_norm: Annotated[
        AdaptiveNorm | None,
        Field(
            description="Normalisation in each residual block that each sample's condition controls. Left out: none."
        ),
    ] = None

    @property
    def blocks(self) -> list[tuple[int, int, int]]:
        """Of each residual block: channels in, channels out, and its stride."""
        depth = self.blocks_per_stage or 1
        widths = [width for width in self.channels for _ in range(depth)]
        strides = [2 if block and block % depth == 0 else 1 for block in range(len(widths))]
        return list(zip([self.channels[0], *widths], widths, strides, strict=False))

    @property
    def normalisation(self) -> AnyNorm:
        """As `norm` says or, where it is left out, `groups`."""
        return GroupNorm(groups=self.groups) if self.norm is None else self.norm.value

    @model_validator(mode="after")
    def _groups_divide_channels(self) -> Self:
        if self.norm is None:
            _require_divisor("groups", self.groups, "channels", self.channels)
        elif self.norm.group is not None:
            _require_divisor("norm.group.groups", self.norm.group.groups, "channels", self.channels)
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
        (
            "!has(self.adaptiveDropout) || !has(self.experts)",
            "'adaptiveDropout: drops units of the SwiGLU layer, which experts replace; remove one of the two'",
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
    experts: Annotated[
        Experts | None, Field(description="A mixture of experts. Left out: every token takes the one SwiGLU layer.")
    ] = None
    reversible: Annotated[
        Reversible | None, Field(description="Left out: the activations of every layer are kept.")
    ] = None
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
        if self.adaptive_dropout is not None and self.experts is not None:
            raise ValueError(
                "adaptiveDropout: drops units of the SwiGLU layer, which experts replace; remove one of the two"
            )
        return self


_CEL_STATISTICS = [
    f"(has(self.model.{kind}) && has(self.model.{kind}.norm)"
    f" && (has(self.model.{kind}.norm.batch) || has(self.model.{kind}.norm.mix)))"
    for kind in ("cnn", "mlp")
]
CEL_BATCH_STATISTICS = f"({' || '.join(_CEL_STATISTICS)})"
"""The twin of `Model.batch_statistics` in the rules of whatever has a model."""


_CEL_CONDITIONED = [
    f"(has(self.model.{kind}) && has(self.model.{kind}.{field}))"
    for kind, field in (("mlp", "conditionalScaling"), ("cnn", "conditionalScaling"), ("cnn", "adaptiveNorm"))
]
CEL_TAKES_CONDITIONS = f"({' || '.join(_CEL_CONDITIONED)})"
"""The twin of `Model.takes_conditions`."""


class Model(OneOf):
    """The model's architecture. Set exactly one key. Input and output sizes follow from the data."""

    mlp: Annotated[Mlp | None, Field(description="A multi-layer perceptron.")] = None
    cnn: Annotated[Cnn | None, Field(description="A residual convolutional network, for images.")] = None
    transformer: Annotated[Transformer | None, Field(description="A Llama-style decoder, for tokens.")] = None
    custom: Annotated[Custom | None, Field(description="A module of your own, for any data.")] = None

    @property
    def batch_statistics(self) -> str | None:
        """The field that asks for statistics over the samples of a micro-step, so that it matters how a batch is cut;
        None: every sample is computed on its own."""
        norm = getattr(self.value, "norm", None)
        return f"{self.kind}.norm.{norm.kind}" if norm is not None and norm.kind in ("batch", "mix") else None

    @property
    def takes_conditions(self) -> bool:
        """Whether it needs something said of each sample beside its input."""
        fields = ("conditional_scaling", "adaptive_norm")
        return any(getattr(self.value, field, None) is not None for field in fields)
