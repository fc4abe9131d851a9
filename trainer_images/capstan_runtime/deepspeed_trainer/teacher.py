"""Whom a run learns from, beside DeepSpeed, which neither trains it nor cuts it up."""

import torch
from torch import Tensor

from capstan_runtime.deepspeed_trainer.forward_pass import Pass
from capstan_runtime.deepspeed_trainer.models import AnyModel, trained_model
from capstan_runtime.engine import Trained


class Teacher:
    """Called like a model; whole on every rank that has logits, and no part of the state."""

    def __init__(self, trained: Trained, device: torch.device) -> None:
        """Reads nothing yet."""
        self.root = trained.root
        self._trained, self._device = trained, device
        self._model: AnyModel | None = None

    def read(self) -> None:
        """Before the first call. Raises as `trained_model` does."""
        self._model = trained_model(self._trained.signature, self._trained.tensors, self._device)

    def weights(self) -> list[Tensor]:
        """All that the device has of it."""
        return [*self._known().parameters(), *self._known().buffers()]

    def __call__(self, inputs: Tensor, here: Pass) -> Tensor:
        logits: Tensor = self._known()(inputs, here)
        return logits

    def _known(self) -> AnyModel:
        assert self._model is not None, "nobody has read the teacher"
        return self._model
