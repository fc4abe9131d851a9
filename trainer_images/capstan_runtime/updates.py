"""What an update of the weights needs beside gradients: the state that is kept from step to step, and the numbers that
change with it.

Both are the same in every framework: state has the same names, shapes and first values, so that a checkpoint of one is
a checkpoint of the other; and the numbers are computed here, in double precision, so that both round the same ones. The
step enters them as a power or a remainder: nothing is carried that a resume would have to restore. What is done with
them to tensors is in `flax_trainer/optimizers` and `deepspeed_trainer/optimizers`.

The average of `training.ema` is one of the whole model: running statistics are averaged as weights are, at the same
rate, because those of the newest weights are not those of averaged ones. So does timm's `ModelEmaV3`, with all that is
in the state dict, and torch's `AveragedModel` with `use_buffers`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from capstan_runtime.contract.optimizers import (
    AdaBelief,
    AdamW,
    Adan,
    DiffGrad,
    Lion,
    NovoGrad,
    Optimizer,
    RAdam,
    Sgd,
    Sophia,
    Yogi,
)
from capstan_runtime.contract.training import Ema, Training

SLOW_WEIGHTS, EMA, HESSIAN = "slow_weights", "ema", "hessian"
_RECTIFIABLE = 5.0
"""Length of RAdam's approximated average above which the second moment is used: of the authors' code, of torch and of
optax; the paper's text says 4, which it calls an approximation."""


@dataclass(frozen=True, slots=True)
class StateKind:
    """One kind of state that an update keeps, for every parameter."""

    name: str
    first: float | None = 0.0
    """Each element's value before the first step; None: that of the parameter."""
    per_parameter: bool = False
    """A single number for each parameter, instead of one for each of its elements."""


def state_kinds(optimizer: Optimizer, training: Training) -> tuple[StateKind, ...]:
    """All that is kept beside the weights, first what the optimizer's own arithmetic takes."""
    wrappers = []
    if training.lookahead is not None:
        wrappers.append(StateKind(SLOW_WEIGHTS, None))
    if training.ema is not None:
        wrappers.append(StateKind(EMA, None))
    return (*_kinds_of(optimizer), *wrappers)


def _kinds_of(optimizer: Optimizer) -> tuple[StateKind, ...]:
    match optimizer.value:
        case AdamW() | RAdam():
            return StateKind("exp_avg"), StateKind("exp_avg_sq")
        case Yogi() as config:
            return StateKind("exp_avg"), StateKind("exp_avg_sq", config.initial_accumulator)
        case DiffGrad():
            return StateKind("exp_avg"), StateKind("exp_avg_sq"), StateKind("previous_gradient")
        case AdaBelief():
            return StateKind("exp_avg"), StateKind("exp_avg_var")
        case Adan():
            names = ("exp_avg", "exp_avg_diff", "exp_avg_sq", "previous_gradient")
            return tuple(StateKind(name) for name in names)
        case Sophia():
            return StateKind("exp_avg"), StateKind(HESSIAN)
        case Lion():
            return (StateKind("exp_avg"),)
        case NovoGrad():
            return StateKind("exp_avg"), StateKind("exp_avg_norm_sq", per_parameter=True)
        case Sgd(momentum=0.0):
            return ()
        case Sgd():
            return (StateKind("momentum"),)
        case other:  # pragma: no cover - a new kind of optimizer
            raise TypeError(f"nobody has said what {type(other).__name__} keeps")


def update_numbers(optimizer: Optimizer, training: Training, learning_rate: float, step: int) -> dict[str, float]:
    """The numbers of optimizer step number `step` (from 1), by name; every step of a run has the same names.

    `decay`: what weights lose to weight decay (decoupled: Loshchilov and Hutter, 1711.05101). `rate`: of the update,
    with the correction of the first moment in it. `slow_rate`: how far the slow weights go, 0 except when they are due.
    `ema_rate`: share of the weights in their new average. `hessian_rate`: of a new estimate of the Hessian's diagonal,
    0 when none is due.
    """
    numbers = {"decay": learning_rate * optimizer.value.weight_decay, "rate": learning_rate}
    numbers.update(_numbers_of(optimizer, learning_rate, step))
    if training.lookahead is not None:
        numbers["slow_rate"] = 0.0 if step % training.lookahead.steps else training.lookahead.alpha
    if training.ema is not None:
        numbers["ema_rate"] = _ema_rate(training.ema, step)
    return numbers


def _numbers_of(optimizer: Optimizer, learning_rate: float, step: int) -> Iterator[tuple[str, float]]:
    match optimizer.value:
        case AdamW() | AdaBelief() | DiffGrad() | Yogi() as config:
            yield "rate", learning_rate / (1.0 - config.beta1**step)
            yield "root_correction", math.sqrt(1.0 - config.beta2**step)
        case RAdam() as config:
            rectification = _rectification(config.beta2, step)
            yield "rate", learning_rate / (1.0 - config.beta1**step) * (rectification or 1.0)
            yield "root_correction", math.sqrt(1.0 - config.beta2**step)
            yield "is_rectified", float(rectification is not None)
        case Sophia() as config:
            is_due = (step - 1) % config.hessian_every_steps == 0
            yield "hessian_rate", 1.0 - config.beta2 if is_due else 0.0
        case Adan() as config:
            yield "first_correction", 1.0 - config.beta1**step
            yield "difference_correction", 1.0 - config.beta2**step
            yield "root_correction", math.sqrt(1.0 - config.beta3**step)
            yield "has_previous", float(step > 1)


def _rectification(beta2: float, step: int) -> float | None:
    """RAdam's factor of the adaptive rate; None while the second moment's variance cannot be told."""
    longest = 2.0 / (1.0 - beta2) - 1.0
    length = longest - 2.0 * step * beta2**step / (1.0 - beta2**step)
    if length <= _RECTIFIABLE:
        return None
    return math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))


def _ema_rate(ema: Ema, step: int) -> float:
    return 1.0 - (min(ema.decay, (1 + step) / (10 + step)) if ema.warmup else ema.decay)
