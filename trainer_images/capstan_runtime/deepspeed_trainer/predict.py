"""A verified checkpoint as a predictor on torch: parameters alone, in fp32, on the first GPU or the CPU."""

import torch

from capstan_runtime.contract.signature import Signature
from capstan_runtime.deepspeed_trainer.decoder import TransformerModel
from capstan_runtime.deepspeed_trainer.models import trained_model
from capstan_runtime.deepspeed_trainer.predict_classifier import TorchClassifier
from capstan_runtime.deepspeed_trainer.predict_decoder import TorchDecoder
from capstan_runtime.deepspeed_trainer.world import translated_errors
from capstan_runtime.engine import TensorSource
from capstan_runtime.model_signature import require_servable
from capstan_runtime.serving.predictor import Classifier, Decoder


def build(signature: Signature, source: TensorSource, slots: int) -> Classifier | Decoder:
    """The model of `signature` with the parameters in `source`, or their average if it has one; no optimizer state is
    read. `slots`: of a decoder.

    Raises CorruptCheckpoint from `source`, ConfigError if its tensors are not those of `signature`, GpuOutOfMemory.
    """
    require_servable(signature)
    device = _device()
    with translated_errors():
        module = trained_model(signature, source, device)
        if isinstance(module, TransformerModel):
            return TorchDecoder(signature, module, device, slots)
        return TorchClassifier(signature, module, device)


def _device() -> torch.device:
    """With fp32 arithmetic that is fp32."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Matrix products are exact by default, convolutions are not: cuDNN may round their inputs to 10 bits (TF32).
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda", 0)
