"""What to do when the arithmetic goes wrong.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated, Literal

from pydantic import Field

from capstan_runtime.contract.base import Record

NumericalAction = Literal["ignore", "rewind", "halt"]


class LossSpike(Record):
    """A loss far above what it was."""

    factor: Annotated[
        float, Field(gt=1.0, description="A loss above factor x the median of the recent losses is a spike.")
    ]
    window: Annotated[int, Field(ge=5, le=1000, description="How many recent steps the median is taken of.")] = 50
    action: Annotated[
        NumericalAction,
        Field(description="ignore reports it; rewind goes back to the last checkpoint and leaves the batch out."),
    ] = "rewind"


class Numerical(Record):
    """What to do when the arithmetic goes wrong."""

    non_finite: Annotated[
        NumericalAction,
        Field(
            description="A loss or gradient that is NaN or infinite: ignore drops that update, rewind goes back to the "
            "last checkpoint and leaves the batch out, halt ends the job."
        ),
    ] = "halt"
    loss_spike: Annotated[LossSpike | None, Field(description="Left out: the loss may jump.")] = None
    skip_steps: Annotated[
        int, Field(ge=1, le=10000, description="Batches left out from the bad one on, after a rewind.")
    ] = 1
