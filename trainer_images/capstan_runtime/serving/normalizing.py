"""Inputs of a service, normalised as those of the training were: who asks gives pictures as they are."""

from collections.abc import Sequence

from capstan_runtime.contract.augmentation import Normalize
from capstan_runtime.contract.signature import Signature
from capstan_runtime.data.augment import normalized
from capstan_runtime.predicting import Inputs, Logits
from capstan_runtime.serving.predictor import Classifier


class Normalizing:
    """A `Classifier` before another one."""

    def __init__(self, model: Classifier, by: Normalize) -> None:
        self.signature: Signature = model.signature
        self._model = model
        self._by = by

    def warm(self, batch_sizes: Sequence[int]) -> None:
        self._model.warm(batch_sizes)

    def logits(self, inputs: Inputs) -> Logits:
        return self._model.logits(normalized(inputs, self._by))
