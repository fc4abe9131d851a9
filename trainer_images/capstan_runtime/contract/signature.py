"""What goes into a model and what comes out of it: recorded in every checkpoint, so that it can be served without its
TrainingJob."""

from typing import Annotated, Literal

from pydantic import Field

from capstan_runtime.contract.base import Record
from capstan_runtime.contract.config import Model


class Signature(Record):
    """A trained model as its users see it."""

    model: Model
    """The architecture: with the checkpoint's tensors, all there is to it."""
    kind: Literal["image", "vector", "tokens"]
    input_shape: tuple[Annotated[int, Field(ge=1)], ...]
    """Of one sample: (height, width, channels), (features,), or (sequence length,) that it was trained with."""
    outputs: Annotated[int, Field(ge=1)]
    """Classes of an image or a vector; vocabulary of tokens."""
    text: bool = False
    """Tokens are the bytes of UTF-8 text: what goes in and comes out can be shown to people."""
