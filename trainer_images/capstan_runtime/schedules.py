"""The learning rate as a pure function of the step, the same floats in every framework: nothing to carry, nothing to
restore. What `plateau` has come to by its evaluations is the one exception, and an argument (`plateau.py`)."""

import math

from capstan_runtime.contract.schedules import Cosine, Plateau, Polynomial, Restarts, Schedule


def learning_rate_at(step: int, steps: int, peak: float, schedule: Schedule, plateau_fraction: float = 1.0) -> float:
    """The learning rate of optimizer step `step` (from 0) of `steps`, between 0 and `peak`.

    With w warm-up steps, step s < w gets peak (s + 1) / (w + 1): a line that passes 0 one step before the first, so
    that no step is wasted on a rate of 0, and reaches the peak at the first step after the warm-up. Cosine and
    polynomial: over the steps left; the rate after the last one would be `finalFraction` of the peak. Restarts: a cycle
    of n steps is a cosine of which step n would be `finalFraction` of the peak; it is the first of the next. Plateau:
    the peak times `plateau_fraction`, which all others are blind to.
    """
    shape = schedule.value
    warmup_steps: int = shape.warmup_steps
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    match shape:
        case Cosine(final_fraction=final):
            return peak * (final + (1.0 - final) * _half_cosine(done))
        case Polynomial(final_fraction=final, power=power):
            return peak * (final + (1.0 - final) * (1.0 - done) ** power)
        case Restarts(final_fraction=final):
            return peak * (final + (1.0 - final) * _half_cosine(_done_of_cycle(step - warmup_steps, shape)))
        case Plateau():
            return peak * plateau_fraction
    return peak


def unreached_peak(steps: int, schedule: Schedule) -> str | None:
    """What to say of a warm-up that is longer than the run of `steps`; None: it is not."""
    warmup_steps: int = schedule.value.warmup_steps
    if warmup_steps <= steps:
        return None
    percent = 100 * steps // (warmup_steps + 1)
    return (
        f"spec.schedule.{schedule.kind}.warmupSteps: {warmup_steps} of {steps} steps: the learning rate comes to "
        f"{percent} % of its peak and no further; choose fewer"
    )


def _half_cosine(done: float) -> float:
    """From 1 to 0 while `done` goes from 0 to 1."""
    return 0.5 * (1.0 + math.cos(math.pi * done))


def _done_of_cycle(step: int, shape: Restarts) -> float:
    """Share of its cycle that is done before step `step` after the warm-up, in [0, 1)."""
    length, multiplier = shape.first_cycle_steps, shape.cycle_multiplier
    if multiplier == 1:
        return step % length / length
    while step >= length:
        step -= length
        length *= multiplier
    return step / length
