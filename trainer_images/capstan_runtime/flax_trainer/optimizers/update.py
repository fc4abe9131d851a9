"""One update of the weights: from the gradient of the global batch to new weights and state."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

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
    Yogi,
)
from capstan_runtime.contract.training import Training
from capstan_runtime.flax_trainer.leaves import Leaf
from capstan_runtime.flax_trainer.optimizers.adam import Numbers, adabelief, adamw, adan, diffgrad, radam, yogi
from capstan_runtime.flax_trainer.optimizers.gradients import (
    Leaves,
    centralized,
    clip,
    clipped_by_unit,
    global_norm,
)
from capstan_runtime.flax_trainer.optimizers.momentum import lion, novograd, sgd
from capstan_runtime.model_spec import output_layer
from capstan_runtime.updates import EMA, SLOW_WEIGHTS, StateKind, state_kinds, update_numbers

Tree = TypeVar("Tree")
Rule = Callable[..., tuple[jax.Array, ...]]
"""`rule(config, numbers, weights, gradient, *state)` gives new weights and state of one leaf."""
_RULES: dict[type, Rule] = {
    AdamW: adamw,
    Sgd: sgd,
    Adan: adan,
    Lion: lion,
    AdaBelief: adabelief,
    RAdam: radam,
    DiffGrad: diffgrad,
    Yogi: yogi,
    NovoGrad: novograd,
}


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """All that the update of a run is made from."""

    optimizer: Optimizer
    training: Training
    leaves: Sequence[Leaf]
    drops_non_finite: bool = False
    """Whether an update whose gradient has a norm that is NaN or infinite leaves everything as it was."""

    @property
    def kinds(self) -> tuple[StateKind, ...]:
        """Of the state that is kept beside the parameters."""
        return state_kinds(self.optimizer, self.training)

    def numbers(self, learning_rate: float, step: int, loss_factor: float) -> np.ndarray:
        """What changes from step to step, fp32 [n]: what `update_numbers` gives and, last, the factor of this rank's
        loss, 1 unless a fault is injected."""
        numbers = update_numbers(self.optimizer, self.training, learning_rate, step)
        return np.asarray([*numbers.values(), loss_factor], np.float32)

    def apply(
        self, parameters: Leaves, state: list[Leaves], gradients: Leaves, numbers: jax.Array
    ) -> tuple[Leaves, list[Leaves], jax.Array]:
        """New parameters and state, and the gradient's norm before clipping.

        `state` holds one list for each of `kinds`; `numbers` is what the method of that name gives.
        """
        names = update_numbers(self.optimizer, self.training, 1.0, 1)
        at = dict(zip(names, numbers[:-1], strict=True))
        norm, gradients = self._prepared(parameters, gradients)
        updated = self._updated(parameters, state, gradients, at)
        return *self.unless_dropped(norm, updated, (parameters, state)), norm

    def unless_dropped(self, norm: jax.Array, updated: Tree, old: Tree) -> Tree:
        """What an update with a gradient of that norm leaves: `updated` or, where it is dropped, what was there."""
        if not self.drops_non_finite:
            return updated
        keeps = jnp.isfinite(norm)
        return jax.tree.map(lambda new, old: jnp.where(keeps, new, old), updated, old)

    def _prepared(self, parameters: Leaves, gradients: Leaves) -> tuple[jax.Array, Leaves]:
        """The norm, and the gradients as the optimizer takes them."""
        training = self.training
        if training.centralize_gradients is not None:
            gradients = [centralized(g, leaf.stack) for g, leaf in zip(gradients, self.leaves, strict=True)]
        norm = global_norm(gradients)
        gradients = clip(gradients, norm, training.gradient_clip)
        if training.adaptive_clip is not None:
            spared = output_layer(spec.name for leaf in self.leaves for spec in leaf.parameters)
            gradients = [
                g if leaf.parameters[0].name in spared else clipped_by_unit(training.adaptive_clip, w, g, leaf.stack)
                for w, g, leaf in zip(parameters, gradients, self.leaves, strict=True)
            ]
        return norm, gradients

    def _updated(
        self, parameters: Leaves, state: list[Leaves], gradients: Leaves, at: Numbers
    ) -> tuple[Leaves, list[Leaves]]:
        config: Any = self.optimizer.value
        rule = _RULES[type(config)]
        kinds = [kind.name for kind in self.kinds]
        wrapped = kinds.index(SLOW_WEIGHTS) if SLOW_WEIGHTS in kinds else len(kinds) - (EMA in kinds)
        columns = []
        for leaf, w, g, *kept in zip(self.leaves, parameters, gradients, *state, strict=True):
            decayed = w * (1.0 - at["decay"]) if leaf.decays else w
            w, *moments = rule(config, at, decayed, g, *kept[:wrapped])
            rest = dict(zip(kinds[wrapped:], kept[wrapped:], strict=True))
            if SLOW_WEIGHTS in rest:
                slow = rest[SLOW_WEIGHTS] + (w - rest[SLOW_WEIGHTS]) * at["slow_rate"]
                rest[SLOW_WEIGHTS] = slow
                w = jnp.where(at["slow_rate"] > 0, slow, w)
            if EMA in rest:
                rest[EMA] += (w - rest[EMA]) * at["ema_rate"]
            columns.append((w, *moments, *rest.values()))
        updated, *new_state = (list(column) for column in zip(*columns, strict=True))
        return updated, new_state
