"""One update of the weights: from the gradient of the global batch to new weights and state."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from capstan_runtime.contract.compression import Prune, Quantize
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
from capstan_runtime.contract.training import Training
from capstan_runtime.flax_trainer.integers import as_if_integers
from capstan_runtime.flax_trainer.leaves import Leaf
from capstan_runtime.flax_trainer.optimizers.adam import Numbers, adabelief, adamw, adan, diffgrad, radam, yogi
from capstan_runtime.flax_trainer.optimizers.gradients import (
    Leaves,
    centralized,
    clip,
    clipped_by_unit,
    global_norm,
)
from capstan_runtime.flax_trainer.optimizers.momentum import lion, novograd, sgd, sophia
from capstan_runtime.flax_trainer.optimizers.pruning import with_pruned
from capstan_runtime.model_spec import output_layer
from capstan_runtime.pruning import is_pruned, pruning_numbers
from capstan_runtime.quantization import is_quantized, quantization_numbers
from capstan_runtime.updates import EMA, HESSIAN, SLOW_WEIGHTS, StateKind, state_kinds, update_numbers

Tree = TypeVar("Tree")
Rule = Callable[..., tuple[jax.Array, ...]]
"""`rule(config, numbers, weights, gradient, *state)` gives new weights and state of one leaf."""
_RULES: dict[type, Rule] = {
    AdamW: adamw,
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


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """All that the update of a run is made from."""

    optimizer: Optimizer
    training: Training
    leaves: Sequence[Leaf]
    drops_non_finite: bool = False
    """Whether an update whose gradient has a norm that is NaN or infinite leaves everything as it was."""
    axes: Sequence[str | None] = ()
    """Of the mesh, over which each leaf is cut inside `jax.shard_map`. None: that leaf is whole; none: all are."""
    prune: Prune | None = None
    """None: no weight is set to 0. Only of whole leaves."""
    quantize: Quantize | None = None
    """None: no weight becomes an integer. Only of whole leaves."""

    @property
    def kinds(self) -> tuple[StateKind, ...]:
        """Of the state that is kept beside the parameters."""
        return state_kinds(self.optimizer, self.training)

    def numbers(self, learning_rate: float, step: int, loss_factor: float) -> np.ndarray:
        """What changes from step to step, fp32 [n]: what `update_numbers`, `pruning_numbers` and
        `quantization_numbers` give and, last, the factor of this rank's loss, 1 unless a fault is injected."""
        numbers = self._named_numbers(learning_rate, step)
        return np.asarray([*numbers.values(), loss_factor], np.float32)

    def named(self, numbers: jax.Array) -> Numbers:
        """What `numbers` gave, by name."""
        return dict(zip(self._named_numbers(1.0, 1), numbers[:-1], strict=True))

    def used(self, parameters: Leaves, numbers: jax.Array) -> Leaves:
        """What the passes of a step take for the weights."""
        if self.quantize is None or self.quantize.aware is None:
            return parameters
        sees = self.named(numbers)["sees_integers"] > 0
        # What is not quantized is the same array.
        return [
            w if seen is w else jnp.where(sees, seen, w)
            for w, seen in zip(parameters, self.as_if_integers(parameters), strict=True)
        ]

    def as_if_integers(self, parameters: Leaves) -> Leaves:
        """What the integers of the weights stand for. Only of a run that quantizes."""
        assert self.quantize is not None
        bits = self.quantize.bits
        return [
            as_if_integers(w, leaf.stack + leaf.parameters[0].unit_dims, bits)
            if is_quantized(leaf.parameters[0])
            else w
            for leaf, w in zip(self.leaves, parameters, strict=True)
        ]

    @property
    def pruned(self) -> list[int]:
        """Which of the leaves are."""
        if self.prune is None:
            return []
        return [number for number, leaf in enumerate(self.leaves) if is_pruned(leaf.parameters[0])]

    def zeros(self, parameters: Leaves) -> list[jax.Array]:
        """Of each leaf that is pruned: how many weights of each of its matrices are 0, int32."""
        counted = [(parameters[number], self.leaves[number].matrix_stack) for number in self.pruned]
        return [jnp.sum(w == 0, axis=tuple(range(stack, w.ndim)), dtype=jnp.int32) for w, stack in counted]

    @property
    def samples_hessian(self) -> bool:
        """Whether a step whose number `hessian_rate` is not 0 takes an estimate of the Hessian's diagonal."""
        return any(kind.name == HESSIAN for kind in self.kinds)

    def hessian(self, sampled: Leaves, targets: int) -> Leaves:
        """The estimate of its diagonal, from the gradient of the mean loss over `targets` that were drawn from what the
        model says."""
        return [targets * jnp.square(gradient) for gradient in self._centralized(sampled)]

    def _centralized(self, gradients: Leaves) -> Leaves:
        if self.training.centralize_gradients is None:
            return gradients
        return [centralized(g, leaf) for g, leaf in zip(gradients, self.leaves, strict=True)]

    def apply(
        self,
        parameters: Leaves,
        state: list[Leaves],
        gradients: Leaves,
        numbers: jax.Array,
        hessian: Leaves | None = None,
    ) -> tuple[Leaves, list[Leaves], jax.Array]:
        """New parameters and state, and the gradient's norm before clipping.

        `state` holds one list for each of `kinds`; `numbers` is what the method of that name gives; `hessian` is a new
        estimate of its diagonal, or anything finite where none is due.
        """
        at = self.named(numbers)
        norm, gradients = self._prepared(parameters, gradients)
        known = state
        if hessian is not None:
            index = [kind.name for kind in self.kinds].index(HESSIAN)
            averaged = [h + (new - h) * at["hessian_rate"] for h, new in zip(state[index], hessian, strict=True)]
            known = [*state[:index], averaged, *state[index + 1 :]]
        updated = self._updated(parameters, known, gradients, at)
        return *self.unless_dropped(norm, updated, (parameters, state)), norm

    def averaged(self, buffers: Sequence[Leaf], values: Leaves, averages: Leaves, numbers: jax.Array) -> Leaves:
        """The new averages of those of `buffers` that have one, as of the weights; none if the run keeps no average."""
        if not averages:
            return averages
        moving = [value for leaf, value in zip(buffers, values, strict=True) if leaf.is_averaged]
        rate = self.named(numbers)["ema_rate"]
        return [average + (new - average) * rate for average, new in zip(averages, moving, strict=True)]

    def unless_dropped(self, norm: jax.Array, updated: Tree, old: Tree) -> Tree:
        """What an update with a gradient of that norm leaves: `updated` or, where it is dropped, what was there."""
        if not self.drops_non_finite:
            return updated
        keeps = jnp.isfinite(norm)
        return jax.tree.map(lambda new, old: jnp.where(keeps, new, old), updated, old)

    def _named_numbers(self, learning_rate: float, step: int) -> dict[str, float]:
        numbers = update_numbers(self.optimizer, self.training, learning_rate, step)
        return numbers | pruning_numbers(self.prune, step) | quantization_numbers(self.quantize, step)

    def _prepared(self, parameters: Leaves, gradients: Leaves) -> tuple[jax.Array, Leaves]:
        """The norm, and the gradients as the optimizer takes them."""
        training = self.training
        gradients = self._centralized(gradients)
        norm = global_norm(gradients, self.axes)
        gradients = clip(gradients, norm, training.gradient_clip)
        if training.adaptive_clip is not None:
            spared = output_layer(spec.name for leaf in self.leaves for spec in leaf.parameters)
            gradients = [
                g if leaf.parameters[0].name in spared else clipped_by_unit(training.adaptive_clip, w, g, leaf)
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
            before = w
            decayed = w * (1.0 - at["decay"]) if leaf.decays else w
            w, *moments = rule(config, at, decayed, g, *kept[:wrapped])
            rest = dict(zip(kinds[wrapped:], kept[wrapped:], strict=True))
            if SLOW_WEIGHTS in rest:
                slow = rest[SLOW_WEIGHTS] + (w - rest[SLOW_WEIGHTS]) * at["slow_rate"]
                rest[SLOW_WEIGHTS] = slow
                w = jnp.where(at["slow_rate"] > 0, slow, w)
            if self.prune is not None and is_pruned(leaf.parameters[0]):
                w = with_pruned(self.prune, at, before, w, leaf.matrix_stack)
            if EMA in rest:
                rest[EMA] += (w - rest[EMA]) * at["ema_rate"]
            columns.append((w, *moments, *rest.values()))
        updated, *new_state = (list(column) for column in zip(*columns, strict=True))
        return updated, new_state
