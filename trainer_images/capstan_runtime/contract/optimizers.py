"""How weights follow their gradients.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated

from pydantic import Field

from capstan_runtime.contract.base import OneOf, Record

LearningRate = Annotated[float, Field(gt=0.0, description="Peak learning rate; the schedule scales it.")]
WeightDecay = Annotated[
    float, Field(ge=0.0, description="Decoupled weight decay, on matrices and kernels only (not on gains or biases).")
]


class AdamW(Record):
    """AdamW (Loshchilov and Hutter, 2019), decay scaled by the learning rate."""

    learning_rate: LearningRate
    beta1: Annotated[float, Field(ge=0.0, lt=1.0, description="Decay of the first moment.")] = 0.9
    beta2: Annotated[float, Field(ge=0.0, lt=1.0, description="Decay of the second moment.")] = 0.999
    epsilon: Annotated[float, Field(gt=0.0, description="Added to the root of the second moment.")] = 1e-8
    weight_decay: WeightDecay = 0.01


class Sgd(Record):
    """Stochastic gradient descent with momentum."""

    learning_rate: LearningRate
    momentum: Annotated[float, Field(ge=0.0, lt=1.0, description="Momentum; 0 is plain SGD.")] = 0.9
    nesterov: Annotated[bool, Field(description="Use Nesterov's form of momentum.")] = False
    weight_decay: WeightDecay = 0.0


class Optimizer(OneOf):
    """The optimizer. Set exactly one key."""

    adamw: Annotated[AdamW | None, Field(description="AdamW.")] = None
    sgd: Annotated[Sgd | None, Field(description="SGD with momentum.")] = None
