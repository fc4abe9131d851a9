"""A user's own model in the trainers' loop.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

import re
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import Record, cel

_TARGET = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"


class Custom(Record):
    """A module of your own: torch.nn.Module with framework deepspeed, flax.nnx.Module with flax."""

    # No `pattern`: the API server would answer with the bare expression, and check none of the other rules.
    model_config = cel(
        (
            f"self.target.matches(r'{_TARGET}')",
            "'target: ' + self.target + ' names nothing to call; give package.module:factory'",
        )
    )

    target: Annotated[
        str,
        Field(
            max_length=1024,
            description="What makes the module, as package.module:factory. It is called as factory(data, **config), "
            "with Flax factory(data, rngs=rngs, **config), where data has kind (image, vector, tokens), input_shape of "
            "one sample and outputs; imported in the pods alone. The module is called with inputs [batch, ...] (torch "
            "gets images as [batch, channels, height, width]) and returns logits [batch, outputs], of tokens "
            "[batch, time, outputs].",
        ),
    ]
    config: Annotated[
        dict[str, Any],
        Field(
            description="Arguments of the factory, by name.",
            json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
        ),
    ] = {}

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if re.fullmatch(_TARGET, self.target, re.ASCII) is None:
            raise ValueError(f"target: {self.target} names nothing to call; give package.module:factory")
        return self
