"""Optimizers of one moment. As in `adam.py`: over lists of tensors, in place; `at` are the numbers of the step."""

import torch

from capstan_runtime.contract.optimizers import Lion, NovoGrad, Sgd, Sophia
from capstan_runtime.deepspeed_trainer.optimizers.adam import Numbers, Tensors


def sgd(config: Sgd, at: Numbers, w: Tensors, g: Tensors, *velocities: Tensors) -> None:
    """`velocities`: one list, or none where there is no momentum."""
    direction = g
    if velocities:
        (velocity,) = velocities
        torch._foreach_mul_(velocity, config.momentum)
        torch._foreach_add_(velocity, g)
        direction = velocity
        if config.nesterov:
            direction = list(torch._foreach_add(g, velocity, alpha=config.momentum))
    torch._foreach_add_(w, direction, alpha=-at["rate"])


def lion(config: Lion, at: Numbers, w: Tensors, g: Tensors, m: Tensors) -> None:
    direction = torch._foreach_mul(m, config.beta1)
    torch._foreach_add_(direction, g, alpha=1.0 - config.beta1)
    torch._foreach_sign_(direction)
    torch._foreach_add_(w, direction, alpha=-at["rate"])
    torch._foreach_mul_(m, config.beta2)
    torch._foreach_add_(m, g, alpha=1.0 - config.beta2)


def sophia(config: Sophia, at: Numbers, w: Tensors, g: Tensors, m: Tensors, h: Tensors) -> None:
    """`h`: with what this step has found of the Hessian's diagonal in it."""
    torch._foreach_lerp_(m, g, 1.0 - config.beta1)
    divisor = torch._foreach_mul(h, config.gamma)
    torch._foreach_clamp_min_(divisor, config.epsilon)
    direction = torch._foreach_div(m, divisor)
    torch._foreach_clamp_min_(direction, -1.0)
    torch._foreach_clamp_max_(direction, 1.0)
    torch._foreach_add_(w, direction, alpha=-at["rate"])


def novograd(config: NovoGrad, at: Numbers, w: Tensors, g: Tensors, m: Tensors, v: Tensors) -> None:
    """Of whole parameters. `v`: a scalar for each, which starts as the first squared norm that is not 0.

    The paper starts with that of the first step. Of a layer that passes nothing on yet it is 0, and an average from
    there would make the first real step 1 / sqrt(1 - beta2) times too long.
    """
    norms_sq = torch.stack(torch._foreach_norm(g)).square()
    old = torch.stack(v)
    new = torch.where(old == 0, norms_sq, old * config.beta2 + norms_sq * (1.0 - config.beta2))
    torch._foreach_copy_(v, list(new.unbind()))
    divisors = new.sqrt().add_(config.epsilon).unbind()
    torch._foreach_mul_(m, config.beta1)
    torch._foreach_add_(m, torch._foreach_div(g, list(divisors)))
    torch._foreach_add_(w, m, alpha=-at["rate"])
