"""How activations are brought to one scale: the choices of `cnn.norm` and `mlp.norm`.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated

from pydantic import Field

from capstan_runtime.contract.base import OneOf, Positive, Record

DEFAULT_GROUPS = 8

Epsilon = Annotated[float, Field(gt=0.0, description="Added to the variance, so that nothing is divided by zero.")]


class GroupNorm(Record):
    """Group normalisation (1803.08494)."""

    groups: Annotated[
        Positive, Field(description="Groups of channels; must divide every width that is normalised.")
    ] = DEFAULT_GROUPS
    epsilon: Epsilon = 1e-5


class LayerNorm(Record):
    """Layer normalisation (1607.06450)."""

    epsilon: Epsilon = 1e-5


class InstanceNorm(Record):
    """Instance normalisation (1607.08022)."""

    epsilon: Epsilon = 1e-5


class RmsNorm(Record):
    """Root mean square layer normalisation (1910.07467)."""

    epsilon: Epsilon = 1e-5


class RunningStatistics(Record):
    """A normalisation that has statistics of its own for inference."""

    momentum: Annotated[
        float,
        Field(gt=0.0, le=1.0, description="Share that a step's statistics have in the running ones, for inference."),
    ] = 0.1
    epsilon: Epsilon = 1e-5


class BatchNorm(RunningStatistics):
    """Batch normalisation (1502.03167)."""


class MixedNorm(RunningStatistics):
    """Switchable normalisation (1806.10779)."""


_GHOST = (
    "statistics of each channel over the samples that a virtual rank has in a step (globalBatchSize / virtualRanks), "
    "so that they do not depend on the number of workers; running statistics at inference."
)


class CnnNorm(OneOf):
    """How a convolution's output is normalised. Set exactly one key."""

    group: Annotated[GroupNorm | None, Field(description="Statistics of each sample over groups of channels.")] = None
    batch: Annotated[BatchNorm | None, Field(description=f"Batch {_GHOST}")] = None
    layer: Annotated[
        LayerNorm | None, Field(description="Statistics of each position over its channels, as in ConvNeXt.")
    ] = None
    instance: Annotated[InstanceNorm | None, Field(description="Statistics of each channel of each sample.")] = None
    rms: Annotated[
        RmsNorm | None, Field(description="Each position divided by the root mean square of its channels.")
    ] = None
    mix: Annotated[
        MixedNorm | None,
        Field(description=f"Instance, layer and batch statistics in a proportion that is learnt. Batch {_GHOST}"),
    ] = None


class MlpNorm(OneOf):
    """How a hidden layer's output is normalised, before GELU. Set exactly one key."""

    group: Annotated[GroupNorm | None, Field(description="Statistics of each sample over groups of units.")] = None
    batch: Annotated[BatchNorm | None, Field(description=f"Batch {_GHOST}")] = None
    layer: Annotated[LayerNorm | None, Field(description="Statistics of each sample over all units.")] = None
    rms: Annotated[RmsNorm | None, Field(description="Each sample divided by the root mean square of its units.")] = (
        None
    )
    mix: Annotated[
        MixedNorm | None,
        Field(description=f"Layer and batch statistics in a proportion that is learnt. Batch {_GHOST}"),
    ] = None


Norm = CnnNorm | MlpNorm
AnyNorm = GroupNorm | LayerNorm | InstanceNorm | RmsNorm | BatchNorm | MixedNorm
