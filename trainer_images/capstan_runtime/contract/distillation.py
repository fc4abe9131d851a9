"""Learning from a model that is trained already (Hinton et al., 1503.02531)."""

from typing import Annotated

from pydantic import Field

from capstan_runtime.contract.base import Record
from capstan_runtime.contract.trained_model import TrainedModel


class Distill(Record):
    """The loss is (1 - alpha) of `spec.loss` and alpha * temperature^2 of the divergence KL(teacher || model), both of
    whose logits are divided by the temperature: of each sample, or of each token. The teacher sees what the model sees,
    but none of what dropout hides and what an attack adds."""

    teacher: Annotated[
        TrainedModel,
        Field(
            description="Whom to learn from: a model of the same kind of data, with the same outputs; its architecture "
            "is in its checkpoint. It is fixed by digest before the first step."
        ),
    ]
    temperature: Annotated[
        float, Field(gt=0.0, le=1000.0, description="What logits are divided by: the higher, the softer the targets.")
    ] = 2.0
    alpha: Annotated[float, Field(gt=0.0, le=1.0, description="Share of what the teacher says in the loss.")] = 0.5
