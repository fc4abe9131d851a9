"""The torch optimizers, with weight decay that is decoupled and spares gains and biases."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

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
from capstan_runtime.deepspeed_trainer.optimizers.adam import adabelief, adan, diffgrad, radam, yogi
from capstan_runtime.deepspeed_trainer.optimizers.momentum import lion, novograd, sgd, sophia
from capstan_runtime.deepspeed_trainer.parallel.experts import SHARED, is_shared

Rule = Callable[..., None]
"""`rule(config, numbers, weights, gradients, *state)` over lists of tensors, in place."""
_RULES: dict[type, Rule] = {
    Sgd: sgd,
    Sophia: sophia,
    Adan: adan,
    Lion: lion,
    AdaBelief: adabelief,
    RAdam: radam,
    DiffGrad: diffgrad,
    Yogi: yogi,
    NovoGrad: novograd,
}


class RuleOptimizer(torch.optim.Optimizer):
    """One of the rules as an optimizer that DeepSpeed can hand its parts of parameters to, several times a step.

    `numbers` are those of the step, kept true by whoever made it. State is made by `state.make_state`.
    """

    def __init__(
        self, groups: list[dict[str, Any]], optimizer: Optimizer, kinds: Sequence[str], numbers: Mapping[str, float]
    ) -> None:
        super().__init__(groups, {"lr": optimizer.value.learning_rate})
        self._config = optimizer.value
        self._rule = _RULES[type(self._config)]
        self._kinds = kinds
        self._numbers = numbers

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            updated = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not updated:
                continue
            if group["weight_decay"]:
                torch._foreach_mul_(updated, 1.0 - self._numbers["decay"])
            gradients = [parameter.grad for parameter in updated]
            state = ([self.state[parameter][kind] for parameter in updated] for kind in self._kinds)
            self._rule(self._config, self._numbers, updated, gradients, *state)


def build_optimizer(
    optimizer: Optimizer,
    kinds: Sequence[str],
    decaying: list[nn.Parameter],
    others: list[nn.Parameter],
    numbers: Mapping[str, float],
    device: torch.device,
) -> torch.optim.Optimizer:
    """The optimizer over two groups of parameters, of which only the first decays; `kinds` are those of its state.

    Whoever asked for it sets `lr` and `numbers` before every step.
    """
    groups: list[dict[str, Any]] = [
        {"params": decaying, "weight_decay": optimizer.value.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if any(map(is_shared, decaying)):
        # DeepSpeed cuts their state over other ranks. All of them are matrices.
        groups[0]["params"] = [parameter for parameter in decaying if not is_shared(parameter)]
        shared = [parameter for parameter in decaying if is_shared(parameter)]
        groups.append({**groups[0], "params": shared, "moe": True, "name": SHARED})
    match optimizer.value:
        case AdamW() as config:
            return torch.optim.AdamW(
                groups,
                lr=config.learning_rate,
                betas=(config.beta1, config.beta2),
                eps=config.epsilon,
                fused=device.type == "cuda",
            )
        case _:
            return RuleOptimizer(groups, optimizer, kinds, numbers)
