"""The learning rate as a pure function of the step: nothing to carry, nothing to restore."""

import math

from capstan_runtime.contract.schedules import Cosine, Schedule


def learning_rate_at(step: int, steps: int, peak: float, schedule: Schedule) -> float:
    """The learning rate of optimizer step `step` (from 0) of `steps`, between 0 and `peak`.

    With w warm-up steps, step s < w gets peak (s + 1) / (w + 1): a line that passes 0 one step before the first, so
    that no step is wasted on a rate of 0, and reaches the peak at the first step after the warm-up. Cosine: half a
    period over the steps left; the rate after the last one would be `finalFraction` of the peak.
    """
    shape = schedule.value
    warmup_steps: int = shape.warmup_steps
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if not isinstance(shape, Cosine):
        return peak
    done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return peak * (shape.final_fraction + (1.0 - shape.final_fraction) * 0.5 * (1.0 + math.cos(math.pi * done)))
