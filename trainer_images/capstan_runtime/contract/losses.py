"""What training makes small, and what it is made harder by.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import OneOf, Positive, Record, cel


class CrossEntropy(Record):
    """Negative log-likelihood of the targets."""

    label_smoothing: Annotated[
        float,
        Field(
            ge=0.0,
            lt=1.0,
            description="Share of the target that is spread evenly over all classes (Szegedy et al., 1512.00567, with "
            "0.1). Evaluation is not smoothed.",
        ),
    ] = 0.0


class Focal(Record):
    """Focal loss (Lin et al., 1708.02002) of the softmax: samples that are right already count less."""

    gamma: Annotated[
        float, Field(ge=0.0, description="Exponent of 1 - p, the probability left for the others; 0 is cross-entropy.")
    ] = 2.0
    class_weights: Annotated[
        list[Annotated[float, Field(gt=0.0)]] | None,
        Field(
            min_length=2,
            max_length=100000,
            description="Weight of each class, first to last: the paper's alpha. Left out: all weigh 1.",
        ),
    ] = None


class Loss(OneOf):
    """What training makes small. Set exactly one key. Evaluation reports the plain cross-entropy, whatever it is."""

    cross_entropy: Annotated[CrossEntropy | None, Field(description="Cross-entropy.")] = None
    focal: Annotated[Focal | None, Field(description="Focal loss.")] = None


Concentration = Annotated[
    float,
    Field(gt=0.0, description="Both parameters of the Beta distribution that the share of the first sample is from."),
]


class Mixup(Record):
    """MixUp (Zhang et al., 1710.09412): a sample is blended with another, and its target with the other's."""

    alpha: Concentration = 0.2


class Cutmix(Record):
    """CutMix (Yun et al., 1905.04899): a box of an image comes from another, and its area's share of the target."""

    alpha: Concentration = 1.0


class Consistency(Record):
    """R-Drop (Liang et al., 2106.14448): each sample is seen twice, with other chances, and predictions must agree."""

    weight: Annotated[
        float, Field(gt=0.0, description="Of the mean of both Kullback-Leibler divergences in the loss.")
    ] = 1.0


Radius = Annotated[
    float, Field(gt=0.0, description="Largest change of each input, or of each coordinate of a token's embedding.")
]
Share = Annotated[
    float,
    Field(gt=0.0, le=1.0, description="Of the loss on changed samples; the rest is that on the samples as they are."),
]


class Fgsm(Record):
    """One step along the sign of the gradient (Goodfellow et al., 1412.6572)."""

    epsilon: Radius
    share: Share = 0.5


class Pgd(Record):
    """Several steps along the sign of the gradient, each kept within epsilon (Madry et al., 1706.06083)."""

    model_config = cel(
        (
            "self.stepSize <= self.epsilon",
            "'stepSize ' + string(self.stepSize) + ' is above epsilon ' + string(self.epsilon) + '; lower stepSize'",
        )
    )

    epsilon: Radius
    step_size: Annotated[float, Field(gt=0.0, description="Length of one step.")]
    steps: Annotated[
        Positive, Field(le=100, description="Steps, each of which costs a forward and a backward pass.")
    ] = 7
    share: Share = 1.0

    @model_validator(mode="after")
    def _step_within_radius(self) -> Self:
        if self.step_size > self.epsilon:
            raise ValueError(f"stepSize {self.step_size} is above epsilon {self.epsilon}; lower stepSize")
        return self


class Adversarial(OneOf):
    """Training on inputs changed to do harm. Set exactly one key. Of tokens it is their embeddings that are changed."""

    fgsm: Annotated[Fgsm | None, Field(description="Fast gradient sign method.")] = None
    pgd: Annotated[Pgd | None, Field(description="Projected gradient descent.")] = None


class Regularization(Record):
    """What makes training harder, so that the model generalises. All of it is absent in evaluation."""

    mixup: Annotated[
        Mixup | None, Field(description="Blend pairs of samples. With cutmix: each sample gets one of them.")
    ] = None
    cutmix: Annotated[Cutmix | None, Field(description="Paste a box of one image into another.")] = None
    consistency: Annotated[
        Consistency | None, Field(description="Ask for the same prediction under other dropout.")
    ] = None
    adversarial: Annotated[Adversarial | None, Field(description="Train on adversarial samples.")] = None
