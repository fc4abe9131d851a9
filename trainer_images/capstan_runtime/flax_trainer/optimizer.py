"""The optimizers, in the arithmetic and the order of operations of `torch.optim`, so that both frameworks agree."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from capstan_runtime.contract.optimizers import AdamW, Optimizer, Sgd

_NORM_EPSILON = 1e-6
"""As `torch.nn.utils.clip_grad_norm_` and DeepSpeed add it to the norm they divide by."""

Leaves = list[jax.Array]


def global_norm(gradients: Leaves) -> jax.Array:
    """L2 norm over all gradients, fp32 scalar."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(gradient)) for gradient in gradients))


def clip(gradients: Leaves, norm: jax.Array, largest_norm: float | None) -> Leaves:
    """Gradients scaled down to `largest_norm` if their global norm exceeds it; None: as they are."""
    if largest_norm is None:
        return gradients
    factor = jnp.minimum(1.0, largest_norm / (norm + _NORM_EPSILON))
    return [gradient * factor for gradient in gradients]


def step_scalars(optimizer: Optimizer, learning_rate: float, step: int, loss_factor: float) -> np.ndarray:
    """What changes from step to step, fp32 [4]: the rates of weight decay, of the update, and Adam's correction of the
    second moment's root at optimizer step number `step` (from 1); and the factor of this rank's loss, 1 unless a fault
    is injected.

    Computed in double precision outside the compiled step, as `torch.optim` does: 1 - 0.999 has lost four digits in
    single precision. The step enters as a power, so nothing is carried that a resume would have to restore.
    """
    match optimizer.value:
        case AdamW() as config:
            update_rate = learning_rate / (1.0 - config.beta1**step)
            correction = math.sqrt(1.0 - config.beta2**step)
        case _:
            update_rate, correction = learning_rate, 1.0
    decay_rate = learning_rate * optimizer.value.weight_decay
    return np.asarray([decay_rate, update_rate, correction, loss_factor], np.float32)


def update(
    optimizer: Optimizer,
    parameters: Leaves,
    moments: list[Leaves],
    gradients: Leaves,
    decays: list[bool],
    scalars: jax.Array,
) -> tuple[Leaves, list[Leaves]]:
    """Parameters and moments after one optimizer step.

    `moments` holds one list per kind that `model_spec.moments` names; `decays` says which parameters weight decay
    pulls to 0. It is decoupled (Loshchilov and Hutter, 1711.05101): scaled by the learning rate, blind to the moments.
    `scalars` is what `step_scalars` gives.
    """
    decay_rate, update_rate, correction, _ = scalars
    decayed = [
        parameter * (1.0 - decay_rate) if decay else parameter
        for parameter, decay in zip(parameters, decays, strict=True)
    ]
    match optimizer.value:
        case AdamW() as config:
            return _adam(config, decayed, moments, gradients, update_rate, correction)
        case Sgd() as config:
            return _sgd(config, decayed, moments, gradients, update_rate)
        case other:  # pragma: no cover - a new kind of optimizer without arithmetic
            raise TypeError(f"no arithmetic for {type(other).__name__}")


def _adam(
    config: AdamW,
    parameters: Leaves,
    moments: list[Leaves],
    gradients: Leaves,
    rate: jax.Array,
    correction: jax.Array,
) -> tuple[Leaves, list[Leaves]]:
    firsts = [m + (g - m) * (1.0 - config.beta1) for m, g in zip(moments[0], gradients, strict=True)]
    seconds = [v * config.beta2 + g * g * (1.0 - config.beta2) for v, g in zip(moments[1], gradients, strict=True)]
    updated = [
        p - rate * m / (jnp.sqrt(v) / correction + config.epsilon)
        for p, m, v in zip(parameters, firsts, seconds, strict=True)
    ]
    return updated, [firsts, seconds]


def _sgd(
    config: Sgd, parameters: Leaves, moments: list[Leaves], gradients: Leaves, rate: jax.Array
) -> tuple[Leaves, list[Leaves]]:
    if not config.momentum:
        return [p - rate * g for p, g in zip(parameters, gradients, strict=True)], []
    velocities = [config.momentum * m + g for m, g in zip(moments[0], gradients, strict=True)]
    directions = velocities
    if config.nesterov:
        directions = [g + config.momentum * v for g, v in zip(gradients, velocities, strict=True)]
    return [p - rate * d for p, d in zip(parameters, directions, strict=True)], [velocities]
