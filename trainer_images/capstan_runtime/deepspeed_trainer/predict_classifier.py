"""Logits of images and vectors."""

# Calling a torch module has no type.
# mypy: disable-error-code="no-any-return"

from collections.abc import Sequence

import torch

from capstan_runtime.contract.signature import Signature
from capstan_runtime.deepspeed_trainer.forward_pass import Pass
from capstan_runtime.deepspeed_trainer.models import CnnModel, MlpModel
from capstan_runtime.deepspeed_trainer.world import translated_errors
from capstan_runtime.predicting import Inputs, Logits, WarmBatches


class TorchClassifier:
    """A `serving.predictor.Classifier`. torch's operators run outside Python's lock."""

    def __init__(self, signature: Signature, module: MlpModel | CnnModel, device: torch.device) -> None:
        self.signature = signature
        self._module = module
        self._device = device
        self._batches = WarmBatches(signature.input_shape)

    def warm(self, batch_sizes: Sequence[int]) -> None:
        with translated_errors():
            for inputs in self._batches.add(batch_sizes):
                self._run(inputs)

    def logits(self, inputs: Inputs) -> Logits:
        return self._batches.compute(inputs, self._run)

    def _run(self, inputs: Inputs) -> Logits:
        if not inputs.flags.writeable:
            inputs = inputs.copy()  # torch has no tensors that are read-only, and says so on stderr
        with torch.inference_mode():
            return self._module(torch.from_numpy(inputs).to(self._device), Pass(torch.float32)).cpu().numpy()
