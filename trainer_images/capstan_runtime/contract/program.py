"""A user's own program in the place of a trainer.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated, Literal

from pydantic import Field

from capstan_runtime.contract.base import Record

Argument = Annotated[str, Field(max_length=4096)]


class Program(Record):
    """A whole program of your own, started by the supervisor once for each attempt and rank. It calls
    `capstan_runtime.attach()`, and is restarted, resized, watched and resumed as Capstan's own trainers are."""

    command: Annotated[
        list[Argument],
        Field(
            min_length=1,
            max_length=1000,
            description="Program and arguments, without a shell: [python, /code/train.py]. The process that it starts "
            "has to call capstan_runtime.attach() itself; a script must end in exec.",
        ),
    ]
    framework: Annotated[
        Literal["torch", "jax"] | None,
        Field(
            description="What the program is written in: torch runs in the operator's image for DeepSpeed, jax in the "
            "one for Flax, each with the variables that its library reads. Left out: workers.image must be given, and "
            "no such variables are set."
        ),
    ] = None
