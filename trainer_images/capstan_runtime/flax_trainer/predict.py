"""A verified checkpoint as a predictor on JAX: parameters alone, in fp32, on the first device."""

import os

import jax

from capstan_runtime.contract.signature import Signature
from capstan_runtime.decoder_spec import as_served
from capstan_runtime.engine import TensorSource
from capstan_runtime.flax_trainer.engine import configure_jax
from capstan_runtime.flax_trainer.leaves import Structure
from capstan_runtime.flax_trainer.predict_classifier import FlaxClassifier
from capstan_runtime.flax_trainer.predict_decoder import FlaxDecoder
from capstan_runtime.flax_trainer.world import translated_errors
from capstan_runtime.model_signature import data_spec_of, require_servable
from capstan_runtime.serving.predictor import Classifier, Decoder


def build(signature: Signature, source: TensorSource, slots: int) -> Classifier | Decoder:
    """The model of `signature` with the parameters in `source`, or their average if it has one; no optimizer state is
    read. `slots`: of a decoder.

    Raises CorruptCheckpoint from `source`, ConfigError if its tensors are not those of `signature`, GpuOutOfMemory.
    """
    require_servable(signature)
    configure_jax("fp32", os.environ)
    structure = Structure(as_served(signature.model), data_spec_of(signature), signature.low_rank)
    with translated_errors():
        parameters = [jax.device_put(value) for value in structure.read_served(source)]
        if signature.kind == "tokens":
            return FlaxDecoder(signature, structure, parameters, slots)
        return FlaxClassifier(signature, structure, parameters)
