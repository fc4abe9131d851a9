"""What a step says, once somebody asks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from capstan_runtime.contract.models import Model
from capstan_runtime.decoder_spec import figures
from capstan_runtime.deepspeed_trainer.world import translated_errors


@dataclass(frozen=True, slots=True)
class DeepSpeedStepResult:
    model: Model
    said: Tensor
    """Loss, and what the model measures, flattened, by name: sums over the ranks, once `reduced` is done."""
    reduced: Any | None
    """None: there is one rank."""
    gradient_norm: Tensor | float
    world: int
    scaling: Mapping[str, float]
    """`loss_scale` and `skipped_steps` where the loss is scaled, or nothing."""

    def fetch(self) -> Mapping[str, float]:
        with translated_errors():
            if self.reduced is not None:
                self.reduced.wait()
            loss, *measured = (total / self.world for total in self.said.tolist())
            norm = float(self.gradient_norm)
        return {"loss": loss, "gradient_norm": norm, **self.scaling, **figures(self.model, np.asarray(measured))}
