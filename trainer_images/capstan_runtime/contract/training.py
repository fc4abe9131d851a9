"""Length, batch, precision and randomness of a run.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import Positive, Record, cel
from capstan_runtime.contract.memory import ActivationCheckpointing


class LossScale(Record):
    """Dynamic loss scaling (Micikevicius et al., 1710.03740). A step whose gradient overflows is skipped by all workers
    and makes the scale smaller; many that do not make it larger. Factors that are powers of two change no update."""

    initial: Annotated[float, Field(ge=1.0, description="Factor of the loss in the first step.")] = 65536.0
    growth_factor: Annotated[float, Field(gt=1.0, description="What the scale is multiplied with to grow.")] = 2.0
    backoff_factor: Annotated[
        float, Field(gt=0.0, lt=1.0, description="What the scale is multiplied with after an overflow; least it is 1.")
    ] = 0.5
    growth_interval: Annotated[
        int, Field(ge=1, description="Steps in a row without overflow after which the scale grows.")
    ] = 2000


class Evaluation(Record):
    """When the model is measured on the held-out samples. The last step is always evaluated."""

    every_steps: Annotated[int, Field(ge=1, description="Steps between two evaluations.")]


class AdaptiveClip(Record):
    """Adaptive gradient clipping (Brock et al., 2102.06171): the gradient of a unit (a row of a matrix, a filter of a
    convolution, a whole gain or bias) is scaled down to `factor` of that unit's weights where it is larger, by L2 norm.
    Not in the output layer, and so not for model.custom. After gradientClip, where both are given."""

    factor: Annotated[
        float, Field(gt=0.0, description="Largest norm of a unit's gradient, as a share of its weights' norm.")
    ] = 0.01
    epsilon: Annotated[
        float, Field(gt=0.0, description="Least norm that a unit's weights count as: those at 0 could never move.")
    ] = 1e-3


class CentralizeGradients(Record):
    """Gradient centralisation (Yong et al., 2004.01461): of every matrix and kernel, the mean over each output is taken
    off the gradient, before it is measured and clipped."""


class Lookahead(Record):
    """Lookahead (Zhang et al., 1907.08610): every `steps` steps, slow weights go `alpha` of the way to those that the
    optimizer has reached, and it goes on from there. Its own state stays."""

    steps: Annotated[int, Field(ge=1, description="Steps of the optimizer between two of the slow weights.")] = 5
    alpha: Annotated[float, Field(gt=0.0, le=1.0, description="Share of the way that the slow weights go.")] = 0.5


class Ema(Record):
    """An exponential moving average of the weights and of running statistics, in fp32, beside them. It is what is
    evaluated, served and converted; training goes on from the weights themselves."""

    decay: Annotated[
        float, Field(gt=0.0, lt=1.0, description="Share of the average that stays in each step; 1 - decay is new.")
    ] = 0.999
    warmup: Annotated[
        bool,
        Field(
            description="Let step t take no larger decay than (1 + t) / (10 + t), so that the first weights, which "
            "know nothing, are soon forgotten."
        ),
    ] = True


_NOTHING_TO_SCALE = "lossScale is for precision fp16 alone, whose gradients may be too small; remove it, or set fp16"


class Training(Record):
    """Length, batch, precision and randomness of the run. None of it depends on the number of workers."""

    model_config = cel(
        ("has(self.steps) != has(self.epochs)", "'set exactly one of steps, epochs'"),
        ("!has(self.lossScale) || self.precision == 'fp16'", f"'{_NOTHING_TO_SCALE}'"),
    )

    steps: Annotated[Positive | None, Field(description="Optimizer steps. Set this or epochs.")] = None
    epochs: Annotated[Positive | None, Field(description="Passes over the training samples. Set this or steps.")] = None
    global_batch_size: Annotated[
        int, Field(ge=1, description="Samples per optimizer step over all workers; virtualRanks must divide it.")
    ]
    virtual_ranks: Annotated[
        Positive | None,
        Field(
            description="Slices the global batch is always cut into. A number of workers is valid when it divides "
            "virtualRanks, so data order and batch stay the same at every size. Left out: workers.max."
        ),
    ] = None
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"],
        Field(
            description="Arithmetic of the forward and backward pass; master weights are fp32. fp16 scales the loss, "
            "as lossScale says."
        ),
    ] = "fp32"
    loss_scale: Annotated[
        LossScale | None, Field(description="How the loss is scaled in fp16. Left out: as its defaults say.")
    ] = None
    gradient_clip: Annotated[
        float | None, Field(gt=0.0, description="Largest global L2 norm of the gradient. Left out: no clipping.")
    ] = None
    adaptive_clip: Annotated[
        AdaptiveClip | None,
        Field(
            description="Clip the gradient unit by unit. With DeepSpeed it needs zeroStage 0: it takes whole "
            "parameters. Left out: no such clipping."
        ),
    ] = None
    centralize_gradients: Annotated[
        CentralizeGradients | None, Field(description="Take the mean off gradients. Left out: they stay as they are.")
    ] = None
    lookahead: Annotated[Lookahead | None, Field(description="Slow weights. Left out: none.")] = None
    ema: Annotated[
        Ema | None, Field(description="A moving average of the weights. Left out: the weights themselves are used.")
    ] = None
    activation_checkpointing: Annotated[
        ActivationCheckpointing | None,
        Field(
            description="Compute activations again instead of keeping them; for cnn and transformer. Left out: all are "
            "kept."
        ),
    ] = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="Seed of initial weights and data order.")] = 0
    evaluation: Annotated[Evaluation | None, Field(description="Left out: evaluated only after the last step.")] = None
    log_every_steps: Annotated[int, Field(ge=1, description="Steps between two reports of loss and throughput.")] = 10

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set exactly one of steps, epochs")
        return self

    @model_validator(mode="after")
    def _something_to_scale(self) -> Self:
        if self.loss_scale is not None and self.precision != "fp16":
            raise ValueError(_NOTHING_TO_SCALE)
        return self

    @property
    def loss_scaling(self) -> LossScale | None:
        """How the loss is scaled; None: it is not."""
        return (self.loss_scale or LossScale()) if self.precision == "fp16" else None
