"""How the learning rate moves.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated

from pydantic import Field

from capstan_runtime.contract.base import Fraction, OneOf, Record
from capstan_runtime.contract.callbacks import EvaluationMetric

WarmupSteps = Annotated[int, Field(ge=0, description="Steps of linear warm-up from 0 to the peak learning rate.")]
FinalFraction = Annotated[Fraction, Field(description="Learning rate at the end, as a share of the peak.")]


class Constant(Record):
    """The peak learning rate throughout, after the warm-up."""

    warmup_steps: WarmupSteps = 0


class Cosine(Record):
    """Half a cosine from the peak to `finalFraction` of it over the steps left after the warm-up."""

    warmup_steps: WarmupSteps = 0
    final_fraction: FinalFraction = 0.0


class Polynomial(Record):
    """A power of what is left, from the peak to `finalFraction` of it, over the steps left after the warm-up."""

    warmup_steps: WarmupSteps = 0
    power: Annotated[float, Field(gt=0.0, description="1 is a straight line; more falls faster at first.")] = 1.0
    final_fraction: FinalFraction = 0.0


class Restarts(Record):
    """Cosine with warm restarts (SGDR: Loshchilov and Hutter, 1608.03983): after the warm-up, half a cosine from the
    peak to `finalFraction` of it, then from the peak again, each cycle `cycleMultiplier` times as long as the last."""

    warmup_steps: WarmupSteps = 0
    first_cycle_steps: Annotated[int, Field(ge=1, description="Steps of the first cycle; T0 in the paper.")]
    cycle_multiplier: Annotated[
        int, Field(ge=1, description="How many times as long as the last a cycle is; Tmult in the paper.")
    ] = 2
    final_fraction: FinalFraction = 0.0


class Plateau(Record):
    """Falls when the model stops getting better: at the peak after the warm-up, and `factor` times what it was whenever
    `patience` evaluations in a row have been no better than the best so far. As torch's ReduceLROnPlateau."""

    warmup_steps: WarmupSteps = 0
    metric: Annotated[
        EvaluationMetric,
        Field(
            description="What each evaluation (training.evaluation) is judged by: validation_loss is to fall, accuracy "
            "to rise."
        ),
    ] = "validation_loss"
    factor: Annotated[float, Field(gt=0.0, lt=1.0, description="What the learning rate is multiplied by.")] = 0.1
    patience: Annotated[
        int, Field(ge=0, description="Evaluations in a row without improvement that are borne; the next one counts.")
    ] = 10
    threshold: Annotated[
        float,
        Field(ge=0.0, lt=1.0, description="Least improvement that counts, as a share of the best figure so far."),
    ] = 1e-4
    cooldown: Annotated[int, Field(ge=0, description="Evaluations that count for nothing after it has fallen.")] = 0
    minimum_fraction: Annotated[Fraction, Field(description="Least learning rate, as a share of the peak.")] = 0.0


class Schedule(OneOf):
    """How the learning rate moves over the steps. Set exactly one key."""

    constant: Annotated[Constant | None, Field(description="Constant after a warm-up.")] = None
    cosine: Annotated[Cosine | None, Field(description="Cosine decay after a warm-up.")] = None
    polynomial: Annotated[Polynomial | None, Field(description="Polynomial decay after a warm-up.")] = None
    restarts: Annotated[Restarts | None, Field(description="Cosine with warm restarts, after a warm-up.")] = None
    plateau: Annotated[Plateau | None, Field(description="Falls when evaluations no longer improve.")] = None
