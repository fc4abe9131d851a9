"""What goes into a model and what comes out of it: recorded in every checkpoint, so that it can be served without its
TrainingJob."""

import json
from typing import Annotated, Literal

from pydantic import Field

from capstan_runtime.contract.augmentation import Normalize
from capstan_runtime.contract.base import Record
from capstan_runtime.contract.models import Model


class Signature(Record):
    """A trained model as its users see it."""

    model: Model
    """The architecture: with the checkpoint's tensors, all there is to it."""
    kind: Literal["image", "vector", "tokens"]
    input_shape: tuple[Annotated[int, Field(ge=1)], ...]
    """Of one sample: (height, width, channels), (features,), or (sequence length,) that it was trained with."""
    outputs: Annotated[int, Field(ge=1)]
    """Classes of an image or a vector; vocabulary of tokens."""
    normalize: Normalize | None = None
    """What is done to inputs before the model sees them; None: nothing."""
    condition: int | None = None
    """Numbers that it takes of each sample beside the input. None: it takes none."""
    low_rank: Annotated[int | None, Field(ge=1, exclude_if=lambda rank: rank is None)] = None
    """Units between the two matrices that are in the place of each that they make smaller (`low_rank.py`). None, and
    then not spelled: matrices are whole."""
    text: bool = False
    """Tokens are the bytes of UTF-8 text: what goes in and comes out can be shown to people."""

    @property
    def architecture(self) -> str:
        """For people: `cnn: channels [8, 16], groups 4`, and `, low rank 8` where it is."""
        settings = self.model.value.document()
        words = [f"{name} {json.dumps(value)}" for name, value in settings.items()]
        if self.low_rank is not None:
            words.append(f"low rank {self.low_rank}")
        return f"{self.model.kind}: " + ", ".join(words)

    @property
    def task(self) -> str:
        """For people: `images of 8 x 8 x 1 to 10 classes`."""
        shape = " x ".join(map(str, self.input_shape))
        match self.kind:
            case "image":
                return f"images of {shape} to {self.outputs} classes"
            case "vector":
                return f"vectors of {shape} to {self.outputs} classes"
            case "tokens":
                what = "bytes of text" if self.text else f"tokens of {self.outputs}"
                return f"the next of up to {shape} {what}"
