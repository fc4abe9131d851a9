"""How the learning rate moves.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated

from pydantic import Field

from capstan_runtime.contract.base import Fraction, OneOf, Record

WarmupSteps = Annotated[int, Field(ge=0, description="Steps of linear warm-up from 0 to the peak learning rate.")]


class Constant(Record):
    """The peak learning rate throughout, after the warm-up."""

    warmup_steps: WarmupSteps = 0


class Cosine(Record):
    """Half a cosine from the peak to `finalFraction` of it over the steps left after the warm-up."""

    warmup_steps: WarmupSteps = 0
    final_fraction: Annotated[Fraction, Field(description="Learning rate at the end, as a share of the peak.")] = 0.0


class Schedule(OneOf):
    """How the learning rate moves over the steps. Set exactly one key."""

    constant: Annotated[Constant | None, Field(description="Constant after a warm-up.")] = None
    cosine: Annotated[Cosine | None, Field(description="Cosine decay after a warm-up.")] = None
