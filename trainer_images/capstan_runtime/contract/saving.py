"""How often a run is saved, what is kept, and what is checked.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated, Literal

from pydantic import Field

from capstan_runtime.contract.base import OneOf, Positive, Record


class Interval(OneOf):
    """How often a checkpoint is saved. Set exactly one key."""

    steps: Annotated[Positive | None, Field(description="Optimizer steps between two saves.")] = None
    seconds: Annotated[Positive | None, Field(description="Seconds between two saves.")] = None


class Best(Record):
    """The checkpoints that did best by one metric."""

    metric: Annotated[
        str, Field(min_length=1, description="A metric of status.metrics, such as accuracy or validation_loss.")
    ]
    mode: Annotated[Literal["max", "min"], Field(description="Whether more or less of the metric is better.")]
    keep: Annotated[int, Field(ge=1, description="How many of the best to keep.")] = 1


class Retention(Record):
    """Which committed checkpoints are kept: those that any of these rules names, and those pinned by
    `capstan checkpoint pin`. The two newest verified ones are never removed."""

    last: Annotated[int, Field(ge=2, description="How many of the newest checkpoints to keep.")] = 3
    every_steps: Annotated[
        Positive | None, Field(description="Also keep every checkpoint whose step is a multiple of this.")
    ] = None
    best: Annotated[Best | None, Field(description="Also keep the best by a metric.")] = None
    newer_than_seconds: Annotated[
        Positive | None, Field(description="Also keep what was committed within so many seconds.")
    ] = None


VerifyLevel = Literal["manifest", "sampled", "full"]


class Verification(Record):
    """What is checked before a checkpoint is believed."""

    level: Annotated[
        VerifyLevel,
        Field(
            description="full hashes every byte that is read, as it is read; sampled a random part of each file; "
            "manifest only names, sizes and digests of digests."
        ),
    ] = "full"
    public_key: Annotated[
        str | None,
        Field(
            min_length=1,
            description="PEM of an ECDSA public key. Given: only checkpoints signed with its private key are used.",
        ),
    ] = None
