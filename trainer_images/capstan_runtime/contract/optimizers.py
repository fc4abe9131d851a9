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
Beta1 = Annotated[float, Field(ge=0.0, lt=1.0, description="Decay of the first moment.")]
Beta2 = Annotated[float, Field(ge=0.0, lt=1.0, description="Decay of the second moment.")]
Epsilon = Annotated[float, Field(gt=0.0, description="Added to the root of the second moment.")]


class AdamW(Record):
    """AdamW (Loshchilov and Hutter, 2019), decay scaled by the learning rate."""

    learning_rate: LearningRate
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.999
    epsilon: Epsilon = 1e-8
    weight_decay: WeightDecay = 0.01


class Sgd(Record):
    """Stochastic gradient descent with momentum."""

    learning_rate: LearningRate
    momentum: Annotated[float, Field(ge=0.0, lt=1.0, description="Momentum; 0 is plain SGD.")] = 0.9
    nesterov: Annotated[bool, Field(description="Use Nesterov's form of momentum.")] = False
    weight_decay: WeightDecay = 0.0


class Sophia(Record):
    """Sophia-G (Liu et al., 2305.14342): momentum over the Hessian's diagonal, and no step longer than the learning
    rate. The diagonal is estimated every few steps by Gauss-Newton-Bartlett: a second backward pass, with labels that
    are drawn from what the model says."""

    learning_rate: LearningRate
    beta1: Beta1 = 0.965
    beta2: Annotated[float, Field(ge=0.0, lt=1.0, description="Decay of the Hessian's diagonal.")] = 0.99
    gamma: Annotated[
        float, Field(gt=0.0, description="What the Hessian's diagonal is multiplied by: the less, the more is clipped.")
    ] = 0.05
    epsilon: Annotated[float, Field(gt=0.0, description="Least value of what is divided by.")] = 1e-12
    hessian_every_steps: Annotated[
        int, Field(ge=1, description="Steps between two estimates of the Hessian's diagonal; k in the paper.")
    ] = 10
    weight_decay: WeightDecay = 0.2


class Adan(Record):
    """Adan (Xie et al., 2208.06677): Nesterov momentum from the difference of successive gradients."""

    learning_rate: LearningRate
    beta1: Beta1 = 0.98
    beta2: Annotated[float, Field(ge=0.0, lt=1.0, description="Decay of the gradients' differences.")] = 0.92
    beta3: Annotated[float, Field(ge=0.0, lt=1.0, description="Decay of the second moment.")] = 0.99
    epsilon: Epsilon = 1e-8
    weight_decay: WeightDecay = 0.02


class Lion(Record):
    """Lion (Chen et al., 2302.06675): the sign of an interpolated momentum. Its authors take a learning rate 3 to 10
    times smaller than AdamW's, and a weight decay as many times larger."""

    learning_rate: LearningRate
    beta1: Annotated[float, Field(ge=0.0, lt=1.0, description="Share of the momentum in the update.")] = 0.9
    beta2: Annotated[float, Field(ge=0.0, lt=1.0, description="Decay of the momentum.")] = 0.99
    weight_decay: WeightDecay = 0.0


class AdaBelief(Record):
    """AdaBelief (Zhuang et al., 2010.07468): the second moment is the gradient's variance about its mean."""

    learning_rate: LearningRate
    beta1: Beta1 = 0.9
    beta2: Annotated[float, Field(ge=0.0, lt=1.0, description="Decay of the variance.")] = 0.999
    epsilon: Annotated[
        float,
        Field(
            gt=0.0,
            description="Added to the variance in each step, and to its root. The paper takes 1e-16, for images 1e-8.",
        ),
    ] = 1e-16
    weight_decay: WeightDecay = 0.0


class RAdam(Record):
    """RAdam (Liu et al., 1908.03265): momentum alone until the second moment is known well enough, then rectified
    Adam."""

    learning_rate: LearningRate
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.999
    epsilon: Epsilon = 1e-8
    weight_decay: WeightDecay = 0.0


class DiffGrad(Record):
    """diffGrad (Dubey et al., 1909.11015): Adam, slower where the gradient hardly changes."""

    learning_rate: LearningRate
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.999
    epsilon: Epsilon = 1e-8
    weight_decay: WeightDecay = 0.0


class Yogi(Record):
    """Yogi (Zaheer et al., NeurIPS 2018): the second moment moves by steps of the squared gradient's size, whatever its
    own. The paper takes a learning rate of 0.01."""

    learning_rate: LearningRate
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.999
    epsilon: Epsilon = 1e-3
    initial_accumulator: Annotated[float, Field(ge=0.0, description="First value of the second moment.")] = 1e-6
    weight_decay: WeightDecay = 0.0


class NovoGrad(Record):
    """NovoGrad (Ginsburg et al., 1905.11286): gradients divided by a moving norm, one for each parameter tensor."""

    learning_rate: LearningRate
    beta1: Beta1 = 0.95
    beta2: Annotated[float, Field(ge=0.0, lt=1.0, description="Decay of the squared norm.")] = 0.98
    epsilon: Annotated[float, Field(gt=0.0, description="Added to the norm.")] = 1e-8
    weight_decay: WeightDecay = 0.0


class Optimizer(OneOf):
    """The optimizer. Set exactly one key."""

    adamw: Annotated[AdamW | None, Field(description="AdamW.")] = None
    sgd: Annotated[Sgd | None, Field(description="SGD with momentum.")] = None
    sophia: Annotated[
        Sophia | None,
        Field(description="Sophia-G. With DeepSpeed it needs zeroStage 0, 1 or 2: it makes a second backward pass."),
    ] = None
    adan: Annotated[Adan | None, Field(description="Adan.")] = None
    lion: Annotated[Lion | None, Field(description="Lion.")] = None
    adabelief: Annotated[AdaBelief | None, Field(description="AdaBelief.")] = None
    radam: Annotated[RAdam | None, Field(description="RAdam.")] = None
    diffgrad: Annotated[DiffGrad | None, Field(description="diffGrad.")] = None
    yogi: Annotated[Yogi | None, Field(description="Yogi.")] = None
    novograd: Annotated[
        NovoGrad | None, Field(description="NovoGrad. With DeepSpeed it needs zeroStage 0: it takes whole parameters.")
    ] = None
