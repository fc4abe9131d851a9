"""Logits of images and vectors: one compiled program per batch size."""

# JAX leaves these parts of its interface untyped.
# mypy: disable-error-code="no-untyped-call,no-any-return"

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from capstan_runtime.contract.signature import Signature
from capstan_runtime.flax_trainer.forward_pass import Pass
from capstan_runtime.flax_trainer.leaves import Structure
from capstan_runtime.flax_trainer.optimizers.gradients import Leaves
from capstan_runtime.flax_trainer.world import translated_errors
from capstan_runtime.predicting import Inputs, Logits, WarmBatches


class FlaxClassifier:
    """A `serving.predictor.Classifier`. A call hands one array to a compiled program and waits outside Python's lock;
    nothing is traced or compiled in it."""

    def __init__(self, signature: Signature, structure: Structure, parameters: Leaves) -> None:
        self.signature = signature
        self._structure = structure
        self._parameters = parameters
        self._batches = WarmBatches(signature.input_shape)
        self._programs: dict[int, Any] = {}

    def warm(self, batch_sizes: Sequence[int]) -> None:
        with translated_errors():
            for inputs in self._batches.add(batch_sizes):
                self._programs[len(inputs)] = jax.jit(self._forward).lower(self._parameters, inputs).compile()
                self._run(inputs)

    def logits(self, inputs: Inputs) -> Logits:
        return self._batches.compute(inputs, self._run)

    def _run(self, inputs: Inputs) -> Logits:
        return np.asarray(self._programs[len(inputs)](self._parameters, inputs))

    def _forward(self, parameters: Leaves, inputs: jax.Array) -> jax.Array:
        return self._structure.assemble(parameters)(inputs, Pass(jnp.dtype(jnp.float32)))
