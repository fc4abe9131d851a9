"""Dynamic loss scaling (Micikevicius et al., 1710.03740): the loss is multiplied so that small gradients survive fp16.

The scale is a power of two times its first value, gradients are divided by it in fp32, so it changes no update. The
global gradient decides, which every rank has alike: where its norm is not finite the step is skipped and the scale goes
down; after so many steps in a row that were not, it goes up.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from capstan_runtime.contract.training import LossScale
from capstan_runtime.engine import LocalTensor, TensorSource

SCALE_NAME, FINITE_STEPS_NAME, SKIPPED_STEPS_NAME = (
    "loss_scale/scale",
    "loss_scale/finite_steps",
    "loss_scale/skipped_steps",
)
LEAST_SCALE = 1.0
"""Below it, scaling would lose what it is there to save: a gradient that is not finite at this scale never was."""


@dataclass(frozen=True, slots=True)
class ScaleState:
    """All that is carried from step to step."""

    scale: float
    finite_steps: int = 0
    """In a row since the scale last changed."""
    skipped_steps: int = 0
    """Of the whole run."""

    def after(self, config: LossScale, is_finite: bool) -> "ScaleState":
        """The state after a step whose gradient was finite, or was not."""
        if not is_finite:
            return ScaleState(max(self._times(config.backoff_factor), LEAST_SCALE), 0, self.skipped_steps + 1)
        if self.finite_steps + 1 < config.growth_interval:
            return ScaleState(self.scale, self.finite_steps + 1, self.skipped_steps)
        grown = self._times(config.growth_factor)
        return ScaleState(grown if math.isfinite(grown) else self.scale, 0, self.skipped_steps)

    def _times(self, factor: float) -> float:
        """In single precision, as on a device."""
        with np.errstate(over="ignore"):
            return float(np.float32(self.scale) * np.float32(factor))

    def export(self) -> Iterator[LocalTensor]:
        """What one rank saves of it."""
        yield LocalTensor(SCALE_NAME, (), 0, np.asarray([self.scale], np.float32))
        yield LocalTensor(FINITE_STEPS_NAME, (), 0, np.asarray([self.finite_steps], np.int64))
        yield LocalTensor(SKIPPED_STEPS_NAME, (), 0, np.asarray([self.skipped_steps], np.int64))


def read_scale(source: TensorSource, config: LossScale) -> ScaleState:
    """The state in a checkpoint; that of a beginning, if it is of a run that had none. Raises CorruptCheckpoint."""
    try:
        source.shape(SCALE_NAME)
    except KeyError:
        return ScaleState(config.initial)
    scale, *counts = (source.read(name).item() for name in (SCALE_NAME, FINITE_STEPS_NAME, SKIPPED_STEPS_NAME))
    return ScaleState(scale, *map(int, counts))


def is_overflow(loss: float, gradient_norm: float, scale: float | None) -> bool:
    """Whether a step was skipped because its scale (None: there is none) was too large, and for no fault of the run:
    the loss, which is computed before it is scaled, is a number."""
    return scale is not None and scale > LEAST_SCALE and math.isfinite(loss) and not math.isfinite(gradient_norm)
