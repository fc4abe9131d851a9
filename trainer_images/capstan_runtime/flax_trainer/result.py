"""What a step says, once somebody asks."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from capstan_runtime.contract.models import Model
from capstan_runtime.decoder_spec import figures
from capstan_runtime.flax_trainer.world import translated_errors

_RESULTS = ("loss", "gradient_norm", "loss_scale", "skipped_steps")


@dataclass(frozen=True, slots=True)
class FlaxStepResult:
    model: Model
    values: jax.Array
    """The first two of `_RESULTS` or, where the loss is scaled, all, and then what the model measures; replicated."""
    is_scaled: bool

    def fetch(self) -> Mapping[str, float]:
        names = _RESULTS if self.is_scaled else _RESULTS[:2]
        with translated_errors():
            values = np.asarray(self.values.addressable_data(0)).tolist()
        return {**dict(zip(names, values, strict=False)), **figures(self.model, np.asarray(values[len(names) :]))}
