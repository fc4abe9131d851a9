"""What came of Adam; AdamW itself is torch's.

Each takes the weights, their gradients and kinds of state as lists of tensors, of any shapes, and changes weights and
state in place; gradients stay. All is element by element, so that flat parts of parameters do as well as whole ones.
`at` are the numbers of the step (`updates.update_numbers`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from capstan_runtime.contract.optimizers import AdaBelief, Adan, DiffGrad, RAdam, Yogi

Numbers = Mapping[str, float]
Tensors = list[Tensor]


def adabelief(config: AdaBelief, at: Numbers, w: Tensors, g: Tensors, m: Tensors, s: Tensors) -> None:
    torch._foreach_lerp_(m, g, 1.0 - config.beta1)
    surprise = torch._foreach_sub(g, m)
    torch._foreach_mul_(s, config.beta2)
    torch._foreach_addcmul_(s, surprise, surprise, value=1.0 - config.beta2)
    torch._foreach_add_(s, config.epsilon)
    torch._foreach_addcdiv_(w, m, _root(s, at, config.epsilon), value=-at["rate"])


def radam(config: RAdam, at: Numbers, w: Tensors, g: Tensors, m: Tensors, v: Tensors) -> None:
    torch._foreach_lerp_(m, g, 1.0 - config.beta1)
    _average_squares(v, g, config.beta2)
    if not at["is_rectified"]:
        torch._foreach_add_(w, m, alpha=-at["rate"])
        return
    root = torch._foreach_sqrt(v)
    torch._foreach_add_(root, config.epsilon)
    torch._foreach_div_(root, at["root_correction"])
    torch._foreach_addcdiv_(w, m, root, value=-at["rate"])


def diffgrad(config: DiffGrad, at: Numbers, w: Tensors, g: Tensors, m: Tensors, v: Tensors, previous: Tensors) -> None:
    torch._foreach_lerp_(m, g, 1.0 - config.beta1)
    _average_squares(v, g, config.beta2)
    friction = torch._foreach_sub(previous, g)
    torch._foreach_abs_(friction)
    torch._foreach_sigmoid_(friction)
    torch._foreach_mul_(friction, m)
    torch._foreach_addcdiv_(w, friction, _root(v, at, config.epsilon), value=-at["rate"])
    torch._foreach_copy_(previous, g)


def yogi(config: Yogi, at: Numbers, w: Tensors, g: Tensors, m: Tensors, v: Tensors) -> None:
    torch._foreach_lerp_(m, g, 1.0 - config.beta1)
    squares = torch._foreach_mul(g, g)
    change = torch._foreach_sub(v, squares)
    torch._foreach_sign_(change)
    torch._foreach_mul_(change, squares)
    torch._foreach_add_(v, change, alpha=config.beta2 - 1.0)
    torch._foreach_addcdiv_(w, m, _root(v, at, config.epsilon), value=-at["rate"])


def adan(
    config: Adan, at: Numbers, w: Tensors, g: Tensors, m: Tensors, d: Tensors, n: Tensors, previous: Tensors
) -> None:
    difference = list(torch._foreach_sub(g, previous))
    torch._foreach_mul_(difference, at["has_previous"])
    torch._foreach_lerp_(m, g, 1.0 - config.beta1)
    torch._foreach_lerp_(d, difference, 1.0 - config.beta2)
    torch._foreach_mul_(difference, config.beta2)
    torch._foreach_add_(difference, g)
    _average_squares(n, difference, config.beta3)
    root = _root(n, at, config.epsilon)
    torch._foreach_addcdiv_(w, m, root, value=-at["rate"] / at["first_correction"])
    torch._foreach_addcdiv_(w, d, root, value=-at["rate"] * config.beta2 / at["difference_correction"])
    torch._foreach_copy_(previous, g)


def _average_squares(average: Tensors, values: Tensors, decay: float) -> None:
    torch._foreach_mul_(average, decay)
    torch._foreach_addcmul_(average, values, values, value=1.0 - decay)


def _root(squares: Tensors, at: Numbers, epsilon: float) -> tuple[Tensor, ...]:
    root = torch._foreach_sqrt(squares)
    torch._foreach_div_(root, at["root_correction"])
    torch._foreach_add_(root, epsilon)
    return root
